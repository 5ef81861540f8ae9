"""Worker threads and a bounded queue around a session; no HTTP in it.

    engine = Engine(session.run, threads=2, max_batch_images=8, queue_images=256)
    with engine.reserve(1):                      # Overloaded when the service has enough to do
        answer = await engine.infer(images, deadline)

An idle worker takes work at once, and idle workers share what came together. Only when all are busy does work
wait, and the next free worker takes what waits, up to the batch limit: a lone request pays no delay, a crowd
shares the cost, and no timer needs tuning.
Work whose caller is gone or whose deadline has passed is dropped before it costs anything.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from ..errors import DeadlineExceeded, Overloaded, Unavailable
from .sessions import Images, Outputs

logger = logging.getLogger("app.engine")


@dataclass(frozen=True)
class Answer:
    """The outputs for one call's images, and where its time went."""

    outputs: Outputs
    queue_seconds: float
    inference_seconds: float

    def by_image(self) -> Iterator["Answer"]:
        """An answer for each image."""
        for index in range(len(self.outputs.logits)):
            yield Answer(self.outputs.part(index, index + 1), self.queue_seconds, self.inference_seconds)


@dataclass(frozen=True)
class _Work:
    images: Images
    deadline: float
    maps: bool
    future: "Future[Answer]" = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)


class ThreadsError(RuntimeError):
    """The system refuses to start so many threads; the message is one line for the operator."""


class Engine:
    """`compute` is a session's `run`, and is called from `threads` threads at once.

    `on_batch(images)` hears of every batch, `on_death()` of a worker that met an error: from then on
    `alive` is false and every call raises Unavailable.
    """

    def __init__(
        self,
        compute: Callable[[Images, bool], Outputs],
        *,
        threads: int,
        max_batch_images: int,
        queue_images: int,
        on_batch: Callable[[int], None] = lambda _: None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self._compute = compute
        self._max_batch_images = max_batch_images
        self._queue_images = queue_images
        self._on_batch = on_batch
        self._on_death = on_death
        self._reserved = 0
        self._idle = 0
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
            except RuntimeError as error:  # the interpreter's, for a limit of the system
                wanted, self._workers = len(self._workers), self._workers[:number]
                self.close()
                raise ThreadsError(f"only {number} of {wanted} threads could be started ({error})") from None

    @property
    def alive(self) -> bool:
        return not (self._closed or self._dead)

    @property
    def died(self) -> bool:
        """Whether a worker met an error, as opposed to a close that was asked for."""
        return self._dead

    @property
    def reserved_images(self) -> int:
        """Images that requests under way hold a place for."""
        return self._reserved

    def fits(self, images: int) -> bool:
        """Whether there are places for so many images."""
        return self._reserved + images <= self._queue_images

    @contextmanager
    def reserve(self, images: int) -> Iterator[Callable[[int], None]]:
        """Hold places for `images` images from the headers to the answer. For the event loop's thread only.

        Yields a function that gives back all places but so many, for when the request turns out to be smaller.
        Raises Overloaded when too few places are left.
        """
        if not self.fits(images):
            raise Overloaded(f"{self._reserved} images are being worked on, at most {self._queue_images} may be")
        held = images
        self._reserved += held

        def keep(fewer: int) -> None:
            nonlocal held
            self._reserved -= held - fewer
            held = fewer

        try:
            yield keep
        finally:
            keep(0)

    def submit(self, images: Images, deadline: float, *, maps: bool = False) -> "Future[Answer]":
        """Queue one call's images, which stay together in one batch. With `maps`, class maps are asked for.

        `deadline` is in seconds of time.monotonic(). Any thread may call. Cancelling the future withdraws work that
        still waits. It, or this call, raises Unavailable; it may raise DeadlineExceeded.
        """
        work = _Work(images, deadline, maps)
        with self._changed:
            if not self.alive:
                raise Unavailable("the engine is not running")
            self._queue.append(work)
            self._changed.notify()
        return work.future

    async def infer(self, images: Images, deadline: float, *, maps: bool = False) -> Answer:
        """`submit`, and the answer. Raises DeadlineExceeded or Unavailable."""
        return await answer_to(self.submit(images, deadline, maps=maps), deadline)

    def close(self) -> None:
        """Finish what was accepted, then stop the workers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        batch: list[_Work] = []
        try:
            while batch := self._take():
                started = time.monotonic()
                outputs = self._compute(
                    np.concatenate([work.images for work in batch]) if batch[1:] else batch[0].images,
                    any(work.maps for work in batch),
                )
                seconds = time.monotonic() - started
                self._on_batch(len(outputs.logits))
                first = 0
                for work in batch:
                    last = first + len(work.images)
                    work.future.set_result(Answer(outputs.part(first, last), started - work.submitted, seconds))
                    first = last
        except Exception:
            # Nothing that a client sends reaches this far unchecked, so this is the machine or a bug, and the
            # next batch would meet it too: say so once, answer everybody, and let the process be replaced.
            logger.exception("an inference worker died")
            self._die(batch)

    def _take(self) -> list[_Work]:
        """The next batch, as soon as there is one; empty when the engine has closed and nothing waits."""
        with self._changed:
            self._idle += 1
            try:
                while not (batch := self._next_batch()) and self.alive:
                    self._changed.wait()
                return batch
            finally:
                self._idle -= 1

    def _next_batch(self) -> list[_Work]:
        batch: list[_Work] = []
        images = 0
        share = -(-len(self._queue) // self._idle)  # rounded up: what the other idle workers leave to this one
        while (
            self._queue
            and len(batch) < share
            and not (batch and images + len(self._queue[0].images) > self._max_batch_images)
        ):
            work = self._queue.popleft()
            if not work.future.set_running_or_notify_cancel():
                continue  # its caller is gone
            if work.deadline <= time.monotonic():
                work.future.set_exception(DeadlineExceeded("no answer within the deadline: the service is busy"))
                continue
            batch.append(work)
            images += len(work.images)
        return batch

    def _die(self, batch: list[_Work]) -> None:
        with self._changed:
            self._dead = True
            orphans = [work for work in self._queue if work.future.set_running_or_notify_cancel()]
            self._queue.clear()
            self._changed.notify_all()
        for work in [*batch, *orphans]:
            if not work.future.done():
                work.future.set_exception(Unavailable("the engine has died; the service is restarting"))
        self._on_death()


async def answer_to(submitted: "Future[Answer]", deadline: float) -> Answer:
    """The answer to what was submitted; cancelling this withdraws it. Raises DeadlineExceeded or Unavailable."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await asyncio.wrap_future(submitted)
    except TimeoutError:
        raise DeadlineExceeded("no answer within the deadline: the service is busy, try again later") from None
