"""Decodes images to thumbnails. The cost of each image is bounded, even for hostile bytes.

    sizes = {"thumbnails": (32, 32), "photographs": (64, 64)}
    decoder = Decoder(processes=2, limits=Limits(), sizes=sizes)
    decoded = await decoder.decode(content, views=1, deadline=deadline, hand_on=engine.submit, client="192.0.2.1")
    decoder.close()

A tiny picture is decoded in a thread of the service. All others go to decoding processes, which the service can kill:
an image that takes more CPU time or memory than Limits allow is refused, and its process is replaced. Each process is
fed by a thread, its lane. A lane takes the next image of the client that holds the fewest lanes. There are two more
lanes than `processes`, so that no client waits long for the expensive images of another:

    small    only for files of up to SMALL_BYTES with up to SMALL_PIXELS
    spare    only for a client that holds no other lane, while all general lanes are busy

Processes start when they are needed and end after IDLE_SECONDS without work. Where no process can be started, images
are decoded in the lanes themselves, but only in formats whose decoders are in C and take linear time.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DeadlineExceeded, Problem, Unavailable, UnsupportedMediaType, forget_tracebacks
from ..sandbox.process import ProcessEnded
from ..workers.tally import Tally
from .decode import EncodedImage
from .formats import is_tiny, recognise
from .kinds import Kind, Sizes
from .pixel_budget import PixelBudget
from .process import DecodingProcess, problem_of

T = TypeVar("T")
Images = NDArray[np.uint8]
Lane = Literal["general", "small", "spare"]
logger = logging.getLogger("app.decoder")

SMALL_BYTES = 1 << 16
SMALL_PIXELS = 1 << 20
IDLE_SECONDS = 60.0
NO_TIME = "no time was left to decode the image: the service is busy"


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
    """thumbnails: uint8 [k, height, width, 3]; handed_on: the result of `hand_on`; seconds: since the call."""

    thumbnails: Images
    kind: Kind
    handed_on: "Future[T]"
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
        """Hand the thumbnails on, unless the caller has given up."""
        if self.abandoned:
            self.result.set_exception(DeadlineExceeded(NO_TIME))
            return
        self.handed_on = self.hand_on(thumbnails)
        if self.abandoned:
            self.handed_on.cancel()
        self.result.set_result(Decoded(thumbnails, kind, self.handed_on, time.monotonic() - self.started))

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

    on_kill: is called for each process that ended, with the reason: "cpu", "memory", "time" or "crash".
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
        self._queue = _Queue(general=processes, idle_seconds=idle_seconds)
        self._living: set[DecodingProcess] = set()
        self._without_processes = False
        lanes: list[Lane] = ["small", "spare"]
        lanes += ["general"] * processes
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name=f"decode-{lane}-{number}", daemon=True)
            for number, lane in enumerate(lanes)
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
        """Decode an image to at most `views` thumbnails; see EncodedImage.thumbnails for their number.

        They have the size for `kind`, by default for the picture's own kind.

        The thread that decoded calls `hand_on` with the thumbnails: another thread would cost time.
        `deadline` is in seconds of time.monotonic(): at the deadline, or when the caller is cancelled, decoding
        is abandoned and the future that `hand_on` returned is cancelled. Clients share the lanes fairly.

        Raises UndecodableImage, UnsupportedMediaType, ImageTooLarge, TooExpensive, DeadlineExceeded, Unavailable, or an
        error of `hand_on`.
        """
        job = _Job(content, views, deadline, hand_on, client, kind, small=len(content) <= SMALL_BYTES)
        if is_tiny(content):
            self._tiny.submit(self._decode_here, job)
        else:
            self._queue.put(job)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.wrap_future(job.result)
        except TimeoutError:
            job.abandon()
            raise DeadlineExceeded(NO_TIME) from None
        except asyncio.CancelledError:
            job.abandon()
            raise
        finally:
            del job  # see forget_tracebacks

    def pids(self) -> list[int]:
        """The process ids of the living decoding processes."""
        return [process.pid for process in set(self._living)]

    def start_one(self) -> bool:
        """Start and end one process; False if that failed. Logs the reason, except at shutdown."""
        try:
            process = self._start()
        except OSError as error:
            if not self._queue.closed:
                self._without_processes = True
                logger.warning("decoding processes cannot be started: %s; AVIF is not accepted", error)
            return False
        self._end(process)
        return True

    def close(self) -> None:
        """Kill the decoding processes. Images that wait or are being decoded get Unavailable."""
        self._queue.close()
        for process in set(self._living):
            process.end()
        self._tiny.shutdown(cancel_futures=True)
        for thread in self._threads:
            thread.join()

    def _serve(self, lane: Lane) -> None:
        """Run a lane: take one job after another. The first job starts the process."""
        process: DecodingProcess | None = None
        while not self._queue.closed:
            job = self._queue.take(lane, idle=process is not None)
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
                    self._decode_in(process, lane, job)
            except ProcessEnded as ended:
                self._end(process)
                process = None
                if self._queue.closed:
                    job.fail(Unavailable("the service is shutting down"))
                else:
                    self._on_kill(ended.reason)
                    job.fail(problem_of(ended))
            except Exception as error:
                job.fail(error)
            finally:
                self._queue.done(lane, job)
                del job  # an idle lane keeps no image
        self._end(process)

    def _decode_in(self, process: DecodingProcess, lane: Lane, job: _Job[Any]) -> None:
        """Raises ProcessEnded, or the error that the caller gets."""
        pixels, kind = process.identify(job.content, self.limits.max_pixels)
        kind = job.kind or kind
        if lane == "small" and pixels > SMALL_PIXELS:
            process.decline()
            job.small = False
            self._queue.put(job, first=True)
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

    def _decode_here(self, job: _Job[Any]) -> None:
        if not job.result.running() and not job.result.set_running_or_notify_cancel():
            return
        try:
            image = EncodedImage.identify(job.content, self.limits.max_pixels)
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
            if not self._queue.closed:
                logger.warning("a decoding process cannot be started: %s", error)
            return None

    def _start(self) -> DecodingProcess:
        process = DecodingProcess(memory_bytes=self.limits.memory_bytes, cpu_seconds=self.limits.cpu_seconds)
        self._living.add(process)
        if self._queue.closed:
            self._end(process)
            raise OSError("the service is shutting down")
        return process

    def _end(self, process: DecodingProcess | None) -> None:
        if process is not None:
            process.end()
            self._living.discard(process)


class _Queue:
    """Images that wait for a lane."""

    def __init__(self, *, general: int, idle_seconds: float) -> None:
        self.closed = False
        self._idle_seconds = idle_seconds
        self._free = general  # general lanes without work
        self._waiting: dict[str, deque[_Job[Any]]] = {}
        self._held: Counter[str] = Counter()  # lanes by client
        self._changed = threading.Condition()

    def put(self, job: _Job[Any], *, first: bool = False) -> None:
        """Raises Unavailable when the queue is closed."""
        with self._changed:
            if self.closed:
                raise Unavailable("the service is shutting down")
            jobs = self._waiting.setdefault(job.client, deque())
            jobs.insert(0 if first else len(jobs), job)
            self._changed.notify_all()

    def take(self, lane: Lane, *, idle: bool) -> _Job[Any] | None:
        """The next image for a lane. None when the queue is closed, and with `idle` after idle_seconds."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: self.closed or self._next(lane), self._idle_seconds if idle else None
            )
            if not isinstance(found, _Job):
                return None
            if lane == "general":
                self._free -= 1
                self._changed.notify_all()  # the spare lane may be needed now
            self._held[found.client] += 1
            return found

    def done(self, lane: Lane, job: _Job[Any]) -> None:
        """The lane is free again."""
        with self._changed:
            if lane == "general":
                self._free += 1
            self._held[job.client] -= 1
            if not self._held[job.client]:
                del self._held[job.client]
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self.closed = True
            for job in [job for jobs in self._waiting.values() for job in jobs]:
                if job.result.running() or job.result.set_running_or_notify_cancel():
                    job.result.set_exception(Unavailable("the service is shutting down"))
            self._waiting.clear()
            self._changed.notify_all()

    def _next(self, lane: Lane) -> _Job[Any] | None:
        if lane == "spare" and self._free:
            return None
        for client in sorted(self._waiting, key=self._held.__getitem__):
            if lane == "spare" and self._held[client]:
                break
            wanted: Callable[[_Job[Any]], bool] = (lambda job: job.small) if lane == "small" else (lambda _: True)
            while (job := next(filter(wanted, self._waiting[client]), None)) is not None:
                self._remove(job)
                # A job that the small lane returned is already running.
                if job.result.running() or job.result.set_running_or_notify_cancel():
                    return job
                if client not in self._waiting:
                    break
        return None

    def _remove(self, job: _Job[Any]) -> None:
        jobs = self._waiting.pop(job.client)
        jobs.remove(job)
        if jobs:
            self._waiting[job.client] = jobs  # the client goes to the end: the others come first
