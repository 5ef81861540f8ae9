"""Decodes images to thumbnails. The cost of each image is bounded, even for hostile bytes.

    sizes = {"thumbnails": (32, 32), "photographs": (64, 64)}
    decoder = Decoder(processes=2, limits=Limits(), sizes=sizes)
    decoded = await decoder.decode(content, views=1, deadline=deadline, hand_on=engine.submit, client="192.0.2.1")
    decoder.close()

A minute picture takes less time than a change of threads and is decoded at once, up to MOST_AT_ONCE in an iteration of
the event loop. Further ones, and tiny ones, are decoded in threads of the service. All others go to decoding processes,
which the service can kill: an image that takes more CPU time or memory than Limits allow is refused, and its process is
replaced. Each process is fed by a thread, its lane. A lane takes the next image of the client that holds the fewest
lanes. There are two more lanes than `processes`, so that no client waits long for the expensive images of another:

    small    only for files of up to SMALL_BYTES with up to SMALL_PIXELS
    spare    only for a client that holds no other lane, while all general lanes are busy

One process has lanes of its own (app.imaging.own_processes). Several workers have them together: the supervisor lends
processes (app.imaging.pool), and workers borrow them (app.imaging.borrowed_processes).

Where no process can be started, images are decoded in threads of the service, but only in formats whose decoders are in
C and take linear time.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol, TypeVar

from ..errors import DeadlineExceeded, UnsupportedMediaType
from .decode import EncodedImage
from .fair_queue import Use
from .formats import MINUTE_PIXELS, TINY_PIXELS, is_minute, is_tiny, recognise
from .job import NO_ANSWER, NO_TIME, Decoded, Images, Job
from .kinds import Kind, Sizes
from .limits import SMALL_BYTES, SMALL_PIXELS, Limits
from .own_processes import IDLE_SECONDS, OwnProcesses
from .process import DecodingConversation, Order

T = TypeVar("T")

MOST_AT_ONCE = 4


class Processes(Protocol):
    """Decoding processes, and the images that wait for them."""

    def put(self, job: Job[Any], *, first: bool = False) -> None:
        """Decode it when its client's turn has come, or with `first` before its client's others. For any thread.

        Raises Unavailable.
        """
        ...

    def withdraw(self, job: Job[Any]) -> None:
        """Its caller has given up."""
        ...

    def hold(self, job: Job[Any], pixels: int) -> AbstractContextManager[bool]:
        """Wait for so many of max_inflight_pixels, in a lane that has the job; False if its deadline passes first."""
        ...

    def check(self) -> bool:
        """Whether processes can be started; if not, the log says why."""
        ...

    def pids(self) -> list[int]:
        """The process ids of this process's own decoding processes."""
        ...

    def close(self) -> None:
        """End them. Images that wait or are being decoded get Unavailable."""
        ...


class Decoder:
    """For any event loop; `close` it when done. sizes: of the thumbnails, for each kind of picture.

    processes: how many general lanes there are. borrowed: takes the place of processes of its own, and is not closed.
    on_kill: is called for each of its own that ended, with the reason, one of app.sandbox.conversation.REASONS.
    """

    def __init__(
        self,
        *,
        processes: int,
        limits: Limits,
        sizes: Sizes,
        on_kill: Callable[[str], None] = lambda _: None,
        idle_seconds: float = IDLE_SECONDS,
        borrowed: Processes | None = None,
    ) -> None:
        self.limits = limits
        self._sizes = sizes
        self._tiny = ThreadPoolExecutor(processes, thread_name_prefix="decode-tiny")
        self._own = None if borrowed else OwnProcesses(processes, limits, on_kill, idle_seconds)
        self.processes: Processes = borrowed or self._own  # type: ignore[assignment]
        self._at_once = 0  # pictures that were decoded in this iteration of the event loop

    async def decode(
        self,
        content: bytes,
        views: int,
        deadline: float,
        hand_on: Callable[[Images], "Future[T]"],
        client: str = "",
        kind: Kind | None = None,
    ) -> Decoded[T]:
        """Decode an image to at most `views` thumbnails, and wait for the answer to them.

        See EncodedImage.thumbnails for their number. They have the size for `kind`, by default for the picture's own
        kind. The thread that decoded calls `hand_on` with them, and this wakes up when the future that it returns has
        the answer: each further change of threads would cost time.

        `deadline` is in seconds of time.monotonic(): at the deadline, or when the caller is cancelled, decoding
        is abandoned and that future is cancelled. Clients share the lanes fairly.

        Raises UndecodableImage, UnsupportedMediaType, ImageTooLarge, TooExpensive, DeadlineExceeded, Unavailable, or an
        error of `hand_on`.
        """
        small = len(content) <= SMALL_BYTES
        job = Job(content, views, deadline, hand_on, client, kind, small, self._decode_in)
        if is_minute(content) and self._has_turn():
            self._decode_here(job, MINUTE_PIXELS)
        elif is_tiny(content):
            self._tiny.submit(self._decode_here, job, TINY_PIXELS)
        else:
            self.processes.put(job)
        try:
            if job.result.done():  # decoded, and with `hand_on` answered, in this thread: nothing is to be waited for
                return job.result.result()
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.wrap_future(job.result)
        except TimeoutError:
            late = DeadlineExceeded(NO_ANSWER if job.handed_on else NO_TIME)
            self._give_up(job)
            raise late from None
        except asyncio.CancelledError:
            self._give_up(job)
            raise
        finally:
            del job  # see forget_tracebacks

    def _has_turn(self) -> bool:
        if not self._at_once:
            asyncio.get_running_loop().call_soon(self._end_turns)
        self._at_once += 1
        return self._at_once <= MOST_AT_ONCE

    def _end_turns(self) -> None:
        self._at_once = 0

    def close(self) -> None:
        """End its own processes. Images that wait for them or are being decoded get Unavailable."""
        if self._own:
            self._own.close()
        self._tiny.shutdown(cancel_futures=True)

    def _give_up(self, job: Job[Any]) -> None:
        job.abandon()
        self.processes.withdraw(job)

    def _decode_in(self, process: DecodingConversation | None, use: Use, job: Job[Any]) -> Callable[[], None]:
        """In a lane. Returns what is left to do. Raises ProcessEnded, or the error that the caller gets."""
        if process is None:
            self._decode_without_process(job)
            return _nothing
        sizes = self._sizes if job.kind is None else dict.fromkeys(self._sizes, self._sizes[job.kind])
        order = Order(job.views, sizes, SMALL_PIXELS)
        pixels, kind = process.identify(job.content, self.limits.max_pixels, order)
        kind = job.kind or kind
        if use == "small" and pixels > SMALL_PIXELS:
            process.decline()
            job.small = False
            self.processes.put(job, first=True)
            return _nothing
        with self._hold(job, pixels) as held:
            if not held or job.abandoned:
                process.decline()
                raise DeadlineExceeded(NO_TIME)
            thumbnails = process.thumbnails(job.views, *self._sizes[kind])
        return partial(job.finish, thumbnails, kind)

    def _hold(self, job: Job[Any], pixels: int) -> AbstractContextManager[bool]:
        return self.processes.hold(job, pixels) if pixels > SMALL_PIXELS else nullcontext(True)

    def _decode_without_process(self, job: Job[Any]) -> None:
        if recognise(job.content) == "AVIF":
            raise UnsupportedMediaType(
                "AVIF is not accepted here: it needs a decoding process, and none can be started"
            )
        self._decode_here(job)

    def _decode_here(self, job: Job[Any], most_effort: int | None = None) -> None:
        """Decode in this thread; leave an image that takes more to a process, whatever `is_tiny` said of it."""
        if not job.begin():
            return
        try:
            image = EncodedImage.identify(job.content, self.limits.max_pixels)
            if most_effort is not None and image.effort > most_effort:
                self.processes.put(job)
                return
            with self._hold(job, image.pixels) as held:
                if not held:
                    raise DeadlineExceeded(NO_TIME)
                kind = job.kind or image.kind
                thumbnails = image.thumbnails(job.views, *self._sizes[kind])
            job.finish(thumbnails, kind)
        except Exception as error:
            job.fail(error)


def _nothing() -> None:
    """What is left to do of an image that is failed or put again."""
