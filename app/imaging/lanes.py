"""The decoder's threads, and the images that wait for them.

lanes = Lanes(general=2, idle_seconds=60.0)
lanes.put(job)                      # from any thread
job = lanes.take(lane, idle=True)   # in the thread of a lane; lanes.done(lane, job) must follow
"""

import threading
from typing import Any

from ..errors import Unavailable
from .fair_queue import USES, FairQueue, Use, uses
from .job import Job


class Lane:
    """One thread of the decoder."""

    def __init__(self, use: Use, lock: threading.Lock) -> None:
        self.use = use
        self.work = threading.Condition(lock)


class Lanes:
    """`general`: how many of these lanes there are.

    One lane wakes up for an image. Of several it is the one that was used last: its process is in the caches, and the
    others end when they are not needed.
    """

    def __init__(self, *, general: int, idle_seconds: float) -> None:
        self.closed = False
        self._idle_seconds = idle_seconds
        self._queue: FairQueue[Job[Any]] = FairQueue(general)
        self._lock = threading.Lock()
        self._idle: list[Lane] = []  # lanes that sleep, the last one used last
        self.all = [Lane(use, self._lock) for use in uses(general + 2)]

    def put(self, job: Job[Any], *, first: bool = False) -> None:
        """Raises Unavailable when the queue is closed."""
        with self._lock:
            if self.closed:
                raise Unavailable("the service is shutting down")
            self._queue.put(job, first=first)
            self._wake_one()

    def holds(self, client: str) -> int:
        """How many lanes a client has."""
        with self._lock:
            return self._queue.holds(client)

    def withdraw(self, job: Job[Any]) -> None:
        """It need not be decoded, if it still waits."""
        with self._lock:
            self._queue.discard(job)

    def take(self, lane: Lane, *, idle: bool) -> Job[Any] | None:
        """The next image for a lane. None when the queue is closed, and with `idle` after idle_seconds."""
        with self._lock:
            while not self.closed:
                if job := self._queue.next(lane.use):
                    self._wake_one()  # the spare lane may be needed now
                    return job
                self._idle.append(lane)
                lane.work.wait(self._idle_seconds if idle else None)
                if lane in self._idle:  # nobody woke it
                    self._idle.remove(lane)
                    return None
            return None

    def done(self, lane: Lane, job: Job[Any]) -> None:
        """The lane is free again."""
        with self._lock:
            self._queue.done(lane.use, job)
            self._wake_one()

    def close(self) -> None:
        with self._lock:
            self.closed = True
            for job in self._queue.clear():
                if job.begin():
                    job.fail(Unavailable("the service is shutting down"))
            for lane in self._idle:
                lane.work.notify()
            self._idle.clear()

    def _wake_one(self) -> None:
        """Wake a lane that sleeps and has work, if there is one."""
        for use in USES:
            lane = next((lane for lane in reversed(self._idle) if lane.use == use), None)
            if lane and self._queue.has_work(use):
                self._idle.remove(lane)
                lane.work.notify()
                return
