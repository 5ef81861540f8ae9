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

Processes start when they are needed and end after IDLE_SECONDS without work. Where no process can be started, images
are decoded in the lanes themselves, but only in formats whose decoders are in C and take linear time.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DeadlineExceeded, Problem, Unavailable, UnsupportedMediaType, forget_tracebacks
from ..sandbox.process import ProcessEnded
from ..workers.tally import Tally
from .decode import EncodedImage
from .formats import MINUTE_PIXELS, TINY_PIXELS, is_minute, is_tiny, recognise
from .kinds import Kind, Sizes
from .lanes import Lane, Lanes, Use
from .pixel_budget import PixelBudget
from .process import DecodingProcess, Order, problem_of

T = TypeVar("T")
Images = NDArray[np.uint8]
logger = logging.getLogger("app.decoder")

SMALL_BYTES = 1 << 16
SMALL_PIXELS = 1 << 20
MOST_AT_ONCE = 4
IDLE_SECONDS = 60.0
NO_TIME = "no time was left to decode the image: the service is busy"
NO_ANSWER = "no answer within the deadline: the service is busy, try again later"


@dataclass(frozen=True)
class Limits:
    """max_pixels: for one image; max_inflight_pixels: for all images above SMALL_PIXELS that are decoded at once.

    cpu_seconds: CPU time of one image. memory_bytes: memory that one image may allocate. It suffices for the accepted
    image that needs the most, an AVIF of max_pixels, and for the file itself.
    """

    max_pixels: int = 25_000_000
    max_inflight_pixels: int = 25_000_000
    cpu_seconds: float = 2.0

    @property
    def memory_bytes(self) -> int:
        return 12 * self.max_pixels + (96 << 20)


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """thumbnails: uint8 [k, height, width, 3]; answer: to them, of `hand_on`; seconds: that decoding took."""

    thumbnails: Images
    kind: Kind
    answer: T
    seconds: float


@dataclass
class _Job(Generic[T]):
    content: bytes
    views: int
    deadline: float
    hand_on: Callable[[Images], "Future[T]"]
    client: str
    kind: Kind | None
    small: bool
    started: float = field(default_factory=time.monotonic)
    result: "Future[Decoded[T]]" = field(default_factory=Future)
    handed_on: "Future[T] | None" = None
    abandoned: bool = False

    def finish(self, thumbnails: Images, kind: Kind) -> None:
        """Hand the thumbnails on, unless the caller has given up. The caller wakes up once, with the answer to them."""
        if self.abandoned:
            self.result.set_exception(DeadlineExceeded(NO_TIME))
            return
        seconds = time.monotonic() - self.started
        self.content = b""
        self.handed_on = handed_on = self.hand_on(thumbnails)
        if self.abandoned:
            handed_on.cancel()
        handed_on.add_done_callback(partial(self._answer, thumbnails, kind, seconds))

    def _answer(self, thumbnails: Images, kind: Kind, seconds: float, handed_on: "Future[T]") -> None:
        self.handed_on = None  # which keeps its callbacks, and so this job
        if handed_on.cancelled():  # the caller has given up
            self.result.set_exception(DeadlineExceeded(NO_ANSWER))
        elif error := handed_on.exception():
            self.result.set_exception(error)
        else:
            self.result.set_result(Decoded(thumbnails, kind, handed_on.result(), seconds))

    def fail(self, error: Exception) -> None:
        """Give the caller the error."""
        if isinstance(error, Problem):
            forget_tracebacks(error)
        self.result.set_exception(error)

    def abandon(self) -> None:
        """The caller has given up: withdraw work that has not begun, and drop the result of work that has."""
        self.abandoned = True
        self.result.cancel()
        if self.handed_on is not None:
            self.handed_on.cancel()


class Decoder:
    """For any event loop; `close` it when done. sizes: of the thumbnails, for each kind of picture.

    on_kill: is called for each process that ended, with the reason, one of app.sandbox.process.REASONS.
    pixels: by which several workers have max_inflight_pixels together.
    """

    def __init__(
        self,
        *,
        processes: int,
        limits: Limits,
        sizes: Sizes,
        on_kill: Callable[[str], None] = lambda _: None,
        idle_seconds: float = IDLE_SECONDS,
        pixels: Tally | None = None,
    ) -> None:
        self.limits = limits
        self._sizes = sizes
        self._on_kill = on_kill
        self._budget = PixelBudget(limits.max_inflight_pixels, pixels)
        self._tiny = ThreadPoolExecutor(processes, thread_name_prefix="decode-tiny")
        self._lanes: Lanes[_Job[Any]] = Lanes(general=processes, idle_seconds=idle_seconds)
        self._at_once = 0  # pictures that were decoded in this iteration of the event loop
        self._living: set[DecodingProcess] = set()
        self._without_processes = False
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name=f"decode-{lane.use}-{number}", daemon=True)
            for number, lane in enumerate(self._lanes.all)
        ]
        for thread in self._threads:
            thread.start()

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
        job = _Job(content, views, deadline, hand_on, client, kind, small=len(content) <= SMALL_BYTES)
        if is_minute(content) and self._has_turn():
            self._decode_here(job, MINUTE_PIXELS)
        elif is_tiny(content):
            self._tiny.submit(self._decode_here, job, TINY_PIXELS)
        else:
            self._lanes.put(job)
        try:
            if job.result.done():  # decoded, and with `hand_on` answered, in this thread: nothing is to be waited for
                return job.result.result()
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.wrap_future(job.result)
        except TimeoutError:
            late = DeadlineExceeded(NO_ANSWER if job.handed_on else NO_TIME)
            job.abandon()
            raise late from None
        except asyncio.CancelledError:
            job.abandon()
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

    def pids(self) -> list[int]:
        """The process ids of the living decoding processes."""
        return [process.pid for process in set(self._living)]

    def start_one(self) -> bool:
        """Start and end one process; False if that failed. Logs the reason, except at shutdown."""
        try:
            process = self._start()
        except OSError as error:
            if not self._lanes.closed:
                self._without_processes = True
                logger.warning("decoding processes cannot be started: %s; AVIF is not accepted", error)
            return False
        self._end(process)
        return True

    def close(self) -> None:
        """Kill the decoding processes. Images that wait or are being decoded get Unavailable."""
        self._lanes.close()
        for process in set(self._living):
            process.end()
        self._tiny.shutdown(cancel_futures=True)
        for thread in self._threads:
            thread.join()

    def _serve(self, lane: Lane) -> None:
        """Run a lane: take one job after another. The first job starts the process."""
        process: DecodingProcess | None = None
        while not self._lanes.closed:
            job = self._lanes.take(lane, idle=process is not None)
            if job is None:
                self._end(process)
                process = None
                continue
            try:
                if process and not process.alive:
                    self._on_kill(process.failed(EOFError()).reason)
                    self._end(process)
                    process = None
                process = process or self._start_if_possible()
                if process is None:
                    self._decode_without_process(job)
                else:
                    self._decode_in(process, lane.use, job)
            except ProcessEnded as ended:
                self._end(process)
                process = None
                if self._lanes.closed:
                    job.fail(Unavailable("the service is shutting down"))
                else:
                    self._on_kill(ended.reason)
                    job.fail(problem_of(ended))
            except Exception as error:
                job.fail(error)
            finally:
                self._lanes.done(lane, job)
                del job  # an idle lane keeps no image
        self._end(process)

    def _decode_in(self, process: DecodingProcess, use: Use, job: _Job[Any]) -> None:
        """Raises ProcessEnded, or the error that the caller gets."""
        sizes = self._sizes if job.kind is None else dict.fromkeys(self._sizes, self._sizes[job.kind])
        order = Order(job.views, sizes, SMALL_PIXELS)
        pixels, kind = process.identify(job.content, self.limits.max_pixels, order)
        kind = job.kind or kind
        if use == "small" and pixels > SMALL_PIXELS:
            process.decline()
            job.small = False
            self._lanes.put(job, first=True)
            return
        with self._budget.hold(pixels if pixels > SMALL_PIXELS else 0, job.deadline) as held:
            if not held or job.abandoned:
                process.decline()
                raise DeadlineExceeded(NO_TIME)
            thumbnails = process.thumbnails(job.views, *self._sizes[kind])
        job.finish(thumbnails, kind)

    def _decode_without_process(self, job: _Job[Any]) -> None:
        if recognise(job.content) == "AVIF":
            raise UnsupportedMediaType(
                "AVIF is not accepted here: it needs a decoding process, and none can be started"
            )
        self._decode_here(job)

    def _decode_here(self, job: _Job[Any], most_effort: int | None = None) -> None:
        """Decode in this thread; leave an image that takes more to a process, whatever `is_tiny` said of it."""
        if not job.result.running() and not job.result.set_running_or_notify_cancel():
            return
        try:
            image = EncodedImage.identify(job.content, self.limits.max_pixels)
            if most_effort is not None and image.effort > most_effort:
                self._lanes.put(job)
                return
            with self._budget.hold(image.pixels if image.pixels > SMALL_PIXELS else 0, job.deadline) as held:
                if not held:
                    raise DeadlineExceeded(NO_TIME)
                kind = job.kind or image.kind
                thumbnails = image.thumbnails(job.views, *self._sizes[kind])
            job.finish(thumbnails, kind)
        except Exception as error:
            job.fail(error)

    def _start_if_possible(self) -> DecodingProcess | None:
        if self._without_processes:
            return None
        try:
            return self._start()
        except OSError as error:
            if not self._lanes.closed:
                logger.warning("a decoding process cannot be started: %s", error)
            return None

    def _start(self) -> DecodingProcess:
        process = DecodingProcess(memory_bytes=self.limits.memory_bytes, cpu_seconds=self.limits.cpu_seconds)
        self._living.add(process)
        if self._lanes.closed:
            self._end(process)
            raise OSError("the service is shutting down")
        return process

    def _end(self, process: DecodingProcess | None) -> None:
        if process is not None:
            process.end()
            self._living.discard(process)
