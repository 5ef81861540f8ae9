"""Worker threads and a queue around a session. It knows nothing about HTTP; `places` bounds what is under way.

    engine = Engine(session.run, threads=2, max_batch_images=8)
    answer = await engine.infer(images, deadline)

An idle worker takes work at once, and several idle workers share the queue. Work waits only while all workers are busy.
The next free worker then takes the waiting work as one batch, up to the limit. So a single request is not delayed, many
requests share the cost of a batch, and there is no timer to tune.
A batch holds images of one size; images of another size keep their places in the queue.
Work is dropped before inference if its caller has cancelled it or its deadline has passed.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import DeadlineExceeded, Unavailable
from .sessions import Images, Outputs

IDLE_SECONDS = 2.0
logger = logging.getLogger("app.engine")


@dataclass(frozen=True)
class Answer:
    """The outputs for the images of one call, the time they waited and the time of their batch's inference.

    ended: when the inference ended, in seconds of time.monotonic().
    """

    outputs: Outputs
    queue_seconds: float
    inference_seconds: float
    ended: float = 0.0

    def by_image(self) -> Iterator["Answer"]:
        """One answer for each image, in order."""
        for index in range(len(self.outputs.logits)):
            yield replace(self, outputs=self.outputs.part(index, index + 1))


@dataclass(frozen=True)
class _Work:
    images: Images
    deadline: float
    maps: bool
    future: "Future[Answer]" = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)


class ThreadsError(RuntimeError):
    """The system does not allow so many threads. The message is one line for the operator."""


class Engine:
    """`compute` is the `run` of a session; up to `threads` threads call it at the same time.

    A worker calls `on_batch(images)` after each batch, with its number of images, and `on_idle()` once when there was
    no work for `idle_seconds`. It calls `on_death()` if `compute` raises: from then on `alive` is false and every call
    raises Unavailable. Raises ThreadsError if the threads cannot be started.
    """

    def __init__(
        self,
        compute: Callable[[Images, bool], Outputs],
        *,
        threads: int,
        max_batch_images: int,
        on_batch: Callable[[int], None] = lambda _: None,
        on_idle: Callable[[], None] = lambda: None,
        on_death: Callable[[], None] = lambda: None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._compute = compute
        self._max_batch_images = max_batch_images
        self._on_batch = on_batch
        self._on_idle = on_idle
        self._idle_seconds = idle_seconds
        self._worked = False  # since on_idle was called
        self._on_death = on_death
        self._idle = 0  # workers that wait for work, less those in whose place a caller computes
        self._callers = 0  # that compute
        self._queue: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._dead = False
        self._workers = [
            threading.Thread(target=self._work, name=f"inference-{n}", daemon=True) for n in range(threads)
        ]
        self._start()

    def _start(self) -> None:
        for number, worker in enumerate(self._workers):
            try:
                worker.start()
            except RuntimeError as error:  # raised by the interpreter at a limit of the system
                wanted, self._workers = len(self._workers), self._workers[:number]
                self.close()
                raise ThreadsError(f"only {number} of {wanted} threads could be started ({error})") from None

    @property
    def alive(self) -> bool:
        """Whether the engine accepts work: it is neither closed nor dead."""
        return not (self._closed or self._dead)

    @property
    def died(self) -> bool:
        """Whether a worker has met an error. It stays false after an orderly close."""
        return self._dead

    def submit(self, images: Images, deadline: float, *, maps: bool = False, here: bool = False) -> "Future[Answer]":
        """Queue the images of one call, uint8 RGB [N, height, width, 3]. They stay together in one batch.

        `deadline` is in seconds of time.monotonic(). `maps` adds the class maps to the outputs. With `here` this thread
        computes one image itself, in the place of an idle worker: it spares two changes of threads. Thread-safe.
        Cancelling the future withdraws work that still waits. This call raises Unavailable; the future raises
        Unavailable or DeadlineExceeded.
        """
        work = _Work(images, deadline, maps)
        with self._changed:
            if not self.alive:
                raise Unavailable("the engine is not running")
            here = here and len(images) == 1 and self._idle > 0 and not self._queue
            if here:
                self._idle -= 1
                self._callers += 1
            else:
                self._queue.append(work)
                self._changed.notify()
        if here:
            self._work_here(work)
        return work.future

    async def infer(self, images: Images, deadline: float, *, maps: bool = False) -> Answer:
        """Submit the images and wait for the answer. Raises DeadlineExceeded or Unavailable."""
        return await answer_to(self.submit(images, deadline, maps=maps), deadline)

    def close(self) -> None:
        """Finish the accepted work, then stop the workers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._callers)
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        batch: list[_Work] | None = []
        try:
            while (batch := self._take()) is not None:
                if batch:
                    self._answer(batch)
                else:
                    self._on_idle()
        except Exception:
            self._die(batch or [])

    def _work_here(self, work: _Work) -> None:
        """Compute in the place of an idle worker."""
        work.future.set_running_or_notify_cancel()
        try:
            self._answer([work])
        except Exception:
            self._die([work])
        with self._changed:
            self._idle += 1
            self._callers -= 1
            if not self.alive:
                self._changed.notify_all()
            elif self._queue:
                self._changed.notify()

    def _answer(self, batch: list[_Work]) -> None:
        started = time.monotonic()
        outputs = self._compute(
            np.concatenate([work.images for work in batch]) if batch[1:] else batch[0].images,
            any(work.maps for work in batch),
        )
        ended = time.monotonic()
        self._on_batch(len(outputs.logits))
        first = 0
        for work in batch:
            last = first + len(work.images)
            answer = Answer(outputs.part(first, last), started - work.submitted, ended - started, ended)
            work.future.set_result(answer)
            first = last

    def _take(self) -> list[_Work] | None:
        """Wait for the next batch. It is empty if it is time for `on_idle`, and None if the engine has closed."""
        with self._changed:
            self._idle += 1
            try:
                while not (batch := self._next_batch()):
                    if not self.alive and not self._callers:  # a caller leaves its place to work that waits
                        return None
                    notified = self._changed.wait(self._idle_seconds if self._worked else None)
                    if not notified and self._worked and self._idle == len(self._workers):
                        self._worked = False
                        return []
                self._worked = True
                return batch
            finally:
                self._idle -= 1

    def _next_batch(self) -> list[_Work]:
        batch: list[_Work] = []
        others: list[_Work] = []  # of another size
        images = 0
        if not self._idle:  # a caller computes in this worker's place
            return batch
        share = -(-len(self._queue) // self._idle)  # this worker's share of the queue, rounded up
        while self._queue and len(batch) < share:
            work = self._queue.popleft()
            if batch and work.images.shape[1:] != batch[0].images.shape[1:]:
                others.append(work)
                continue
            if batch and images + len(work.images) > self._max_batch_images:
                others.append(work)
                break
            if not work.future.set_running_or_notify_cancel():
                continue  # cancelled by its caller
            if work.deadline <= time.monotonic():
                work.future.set_exception(DeadlineExceeded("no answer within the deadline: the service is busy"))
                continue
            batch.append(work)
            images += len(work.images)
        self._queue.extendleft(reversed(others))
        return batch

    def _die(self, batch: list[_Work]) -> None:
        """Answer all calls, since the process must be replaced. Called where an exception is handled, which is logged.

        All input was checked before, so the cause is the machine or a bug, and the next batch would fail too.
        """
        logger.exception("an inference worker died")
        with self._changed:
            self._dead = True
            waiting = [work for work in self._queue if work.future.set_running_or_notify_cancel()]
            self._queue.clear()
            self._changed.notify_all()
        for work in [*batch, *waiting]:
            if not work.future.done():
                work.future.set_exception(Unavailable("the engine has died; the service is restarting"))
        self._on_death()


async def answer_to(submitted: "Future[Answer]", deadline: float) -> Answer:
    """Wait for the answer to submitted work. Cancelling this withdraws the work.

    `deadline` is in seconds of time.monotonic(). Raises DeadlineExceeded or Unavailable.
    """
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await asyncio.wrap_future(submitted)
    except TimeoutError:
        raise DeadlineExceeded("no answer within the deadline: the service is busy, try again later") from None
