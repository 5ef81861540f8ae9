"""What the requests of each client network hold, in all workers together: see app.api.fair_share."""

import asyncio
from collections.abc import Iterable
from typing import Literal

from .board import BYTES, MAX_ROWS, PLACES, ROWS, WAITING
from .worker import Worker

Kind = Literal["bytes", "places"]
NUMBERS: dict[Kind, int] = {"bytes": BYTES, "places": PLACES}
KINDS: dict[int, Kind] = {number: kind for kind, number in NUMBERS.items()}
LOOK_SECONDS = 0.005  # between two looks at what another worker's requests hold


class Holdings:
    """For one event loop. `hold` and `wait` tell the others what requests do here; the rest tells what they told."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._part = worker.part
        self._others = worker.others
        self._rows: dict[str, tuple[int, dict[Kind, int]]] = {}  # by network: the row, and what it says
        self._networks: list[str] = []  # by row

    def hold(self, network: str, kind: Kind, amount: int) -> None:
        """A request of this network holds so much more."""
        if kind == "bytes":  # app.inference.places counts places
            self._part.numbers[BYTES] += amount
        row, held = self._rows.get(network) or self._new_row(network)
        held[kind] += amount
        if not any(held.values()):
            self._drop_row(network)
        elif row < MAX_ROWS:
            self._part.set_row(row, network, held["bytes"], held["places"])

    def wait(self, waiting: Iterable[tuple[str, Kind]]) -> None:
        """These networks wait here for others to hold less."""
        self._part.set_waiters([(network, NUMBERS[kind]) for network, kind in waiting])

    def total(self, kind: Kind) -> int:
        return sum(part.numbers[NUMBERS[kind]] for part in self._others)

    def by_network(self, kind: Kind) -> dict[str, int]:
        held: dict[str, int] = {}
        for part in self._others:
            for network, held_bytes, places in part.rows():
                held[network] = held.get(network, 0) + (held_bytes if kind == "bytes" else places)
        return held

    def waiting(self) -> list[tuple[str, Kind]]:
        """The networks that wait in other workers, and for what."""
        waits = [part for part in self._others if part.numbers[WAITING]]  # almost always none, at each request
        return [(network, KINDS.get(kind, "bytes")) for part in waits for network, kind in part.waiters()]

    async def displace(self, network: str, kind: Kind) -> None:
        """Have another worker displace a request of this network. Returns when the network holds less there."""
        held = {number: self._held(number, network, kind) for number in self._worker.siblings}
        if not any(held.values()):
            await asyncio.sleep(LOOK_SECONDS)
            return
        most = max(held, key=held.__getitem__)
        self._worker.mail.tell(most, "displace", [network, kind])
        while self._held(most, network, kind) >= held[most]:
            await asyncio.sleep(LOOK_SECONDS)

    def _held(self, number: int, network: str, kind: Kind) -> int:
        for other, held_bytes, places in self._worker.board.parts[number].rows():
            if other == network:
                return held_bytes if kind == "bytes" else places
        return 0

    def _new_row(self, network: str) -> tuple[int, dict[Kind, int]]:
        nothing: dict[Kind, int] = {"bytes": 0, "places": 0}
        self._rows[network] = new = len(self._networks), nothing
        self._networks.append(network)
        self._part.numbers[ROWS] = min(len(self._networks), MAX_ROWS)
        return new

    def _drop_row(self, network: str) -> None:
        """The last row takes the place of this one, so that there is no gap."""
        row, _ = self._rows.pop(network)
        last = self._networks.pop()
        if last != network:
            held = self._rows[last][1]
            self._rows[last] = row, held
            self._networks[row] = last
            if row < MAX_ROWS:
                self._part.set_row(row, last, held["bytes"], held["places"])
        self._part.numbers[ROWS] = min(len(self._networks), MAX_ROWS)
