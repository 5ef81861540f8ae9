"""Memory that the supervisor and the workers share.

    board = Board(workers=2)             # before the workers are forked
    part = board.parts[0]                # written by worker 0 alone, read by all
    part.numbers[PLACES] += 1
    part.publish(b"...")                 # and board.parts[0].published() in any other process

Each worker writes to a part of its own, so nothing is ever locked, and a worker that is killed leaves no lock behind.
The supervisor clears the part of a worker that has ended. Sums over all parts are read while others write: a limit is
checked again after a number was raised, so that two workers may both step back but never both go over.
"""

import mmap
import struct
from collections.abc import Iterable, Iterator

# Numbers of a part: who writes it, what its requests hold, and how much of the rest of the part is in use.
GENERATION, SERVING, CONNECTIONS, PLACES, BYTES, ROWS, WAITING, VERSION, LENGTH, _ = range(10)
NUMBERS = 16
ROW = struct.Struct("<40sqq")  # a client network, its bytes and its places
MAX_ROWS = 2048  # networks that hold something at once; more do not count for fairness
WAITER = struct.Struct("<40sq")  # a network that waits, and for what
MAX_WAITERS = 64
CONTENT_BYTES = 8 << 20  # of what a part publishes: memory is taken only for what is written
WORD = 8
ENDED = struct.Struct("<q")  # what the supervisor publishes begins with the generation of the worker that ended last


class Part:
    """The part of one process. Whoever owns it writes; all others read."""

    def __init__(self, memory: memoryview) -> None:
        ends = [0, NUMBERS * WORD]
        for size in (MAX_ROWS * ROW.size, MAX_WAITERS * WAITER.size, CONTENT_BYTES, CONTENT_BYTES):
            ends.append(ends[-1] + size)
        numbers, self._rows, self._waiters, *self._halves = (
            memory[start:end] for start, end in zip(ends, ends[1:], strict=False)
        )
        self.numbers = numbers.cast("q")

    SIZE = NUMBERS * WORD + MAX_ROWS * ROW.size + MAX_WAITERS * WAITER.size + 2 * CONTENT_BYTES

    def clear(self) -> None:
        """As of a worker that holds nothing and has counted nothing."""
        for place in range(NUMBERS):
            self.numbers[place] = 0

    def publish(self, content: bytes) -> None:
        """Show the others this instead of what was published before. Raises ValueError if it is too long."""
        version = self.numbers[VERSION] + 1
        half = version % 2
        if len(content) > CONTENT_BYTES:
            raise ValueError(f"{len(content)} bytes do not fit into {CONTENT_BYTES}")
        self._halves[half][: len(content)] = content
        self.numbers[LENGTH + half] = len(content)
        self.numbers[VERSION] = version

    def published(self) -> bytes:
        """What was published last; empty before the first time."""
        while True:
            version = self.numbers[VERSION]
            half = version % 2
            content = bytes(self._halves[half][: self.numbers[LENGTH + half]]) if version else b""
            if self.numbers[VERSION] - version < 2:  # else its owner has begun to overwrite this half
                return content

    def set_row(self, place: int, network: str, held_bytes: int, places: int) -> None:
        """Say what a client network holds. Rows from 0 to numbers[ROWS] are in use."""
        ROW.pack_into(self._rows, place * ROW.size, network.encode()[:40], held_bytes, places)

    def rows(self) -> Iterator[tuple[str, int, int]]:
        """Client networks with the bytes and places that they hold."""
        used = min(self.numbers[ROWS], MAX_ROWS) * ROW.size
        for network, held_bytes, places in ROW.iter_unpack(bytes(self._rows[:used])):
            yield network.rstrip(b"\0").decode(errors="replace"), held_bytes, places

    def set_waiters(self, waiters: list[tuple[str, int]]) -> None:
        """Say which networks wait, and for what: BYTES or PLACES."""
        for place, (network, kind) in enumerate(waiters[:MAX_WAITERS]):
            WAITER.pack_into(self._waiters, place * WAITER.size, network.encode()[:40], kind)
        self.numbers[WAITING] = min(len(waiters), MAX_WAITERS)

    def waiters(self) -> Iterator[tuple[str, int]]:
        used = min(self.numbers[WAITING], MAX_WAITERS) * WAITER.size
        for network, kind in WAITER.iter_unpack(bytes(self._waiters[:used])):
            yield network.rstrip(b"\0").decode(errors="replace"), kind


class Board:
    """The parts of `workers` workers, and the supervisor's, which is the last. To be made before they are forked.

    `rings`: by model, ring_bytes for each worker, which the supervisor does not clear: see app.inference.drift.
    """

    def __init__(self, workers: int, models: Iterable[str] = (), ring_bytes: int = 1) -> None:
        self.parts = [Part(memory) for memory in _shared(workers + 1, Part.SIZE)]
        self.rings = {name: _shared(workers, ring_bytes) for name in models}

    @property
    def workers(self) -> int:
        return len(self.parts) - 1

    @property
    def supervisor(self) -> Part:
        """Its SERVING says whether all workers have started once; it publishes what workers counted that have ended."""
        return self.parts[-1]


def _shared(count: int, size: int) -> list[memoryview]:
    """So many pieces of memory, of so many bytes or some more, that forked processes share. They take pages on use."""
    size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = memoryview(mmap.mmap(-1, size * count))  # anonymous
    return [memory[place * size : (place + 1) * size] for place in range(count)]
