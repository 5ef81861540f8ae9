"""Which of the decoder's threads takes which image next; app.imaging.decoder says what they are for.

lanes = Lanes(general=2, idle_seconds=60.0)
lanes.put(job)                      # from any thread
job = lanes.take(lane, idle=True)   # in the thread of a lane; lanes.done(lane, job) must follow
"""

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, Literal, Protocol, TypeVar

from ..errors import Unavailable

Use = Literal["general", "small", "spare"]
USES: tuple[Use, ...] = ("general", "small", "spare")  # in the order in which lanes get work


class Job(Protocol):
    """An image to decode; `small`: whether the small lane may take it."""

    @property
    def client(self) -> str: ...

    @property
    def small(self) -> bool: ...

    @property
    def result(self) -> "Future[Any]": ...


J = TypeVar("J", bound=Job)


class Lane:
    """One thread of the decoder."""

    def __init__(self, use: Use, lock: threading.Lock) -> None:
        self.use = use
        self.work = threading.Condition(lock)


class Lanes(Generic[J]):
    """The images that wait, and the lanes that take them; `general`: how many of these there are.

    One lane wakes up for an image. Of several it is the one that was used last: its process is in the caches, and the
    others end when they are not needed.
    """

    def __init__(self, *, general: int, idle_seconds: float) -> None:
        self.closed = False
        self._idle_seconds = idle_seconds
        self._free = general  # general lanes without work
        self._waiting: dict[str, deque[J]] = {}
        self._held: Counter[str] = Counter()  # lanes by client
        self._lock = threading.Lock()
        self._idle: list[Lane] = []  # lanes that sleep, the last one used last
        uses: list[Use] = ["small", "spare"]
        uses += ["general"] * general
        self.all = [Lane(use, self._lock) for use in uses]

    def put(self, job: J, *, first: bool = False) -> None:
        """Raises Unavailable when the queue is closed."""
        with self._lock:
            if self.closed:
                raise Unavailable("the service is shutting down")
            jobs = self._waiting.setdefault(job.client, deque())
            jobs.insert(0 if first else len(jobs), job)
            self._wake_one()

    def take(self, lane: Lane, *, idle: bool) -> J | None:
        """The next image for a lane. None when the queue is closed, and with `idle` after idle_seconds."""
        with self._lock:
            while not self.closed:
                if job := self._next(lane.use):
                    if lane.use == "general":
                        self._free -= 1
                    self._held[job.client] += 1
                    self._wake_one()  # the spare lane may be needed now
                    return job
                self._idle.append(lane)
                lane.work.wait(self._idle_seconds if idle else None)
                if lane in self._idle:  # nobody woke it
                    self._idle.remove(lane)
                    return None
            return None

    def done(self, lane: Lane, job: J) -> None:
        """The lane is free again."""
        with self._lock:
            if lane.use == "general":
                self._free += 1
            self._held[job.client] -= 1
            if not self._held[job.client]:
                del self._held[job.client]
            self._wake_one()

    def close(self) -> None:
        with self._lock:
            self.closed = True
            for job in [job for jobs in self._waiting.values() for job in jobs]:
                if job.result.running() or job.result.set_running_or_notify_cancel():
                    job.result.set_exception(Unavailable("the service is shutting down"))
            self._waiting.clear()
            for lane in self._idle:
                lane.work.notify()
            self._idle.clear()

    def _wake_one(self) -> None:
        """Wake a lane that sleeps and has work, if there is one."""
        if not self._waiting:
            return
        for use in USES:
            lane = next((lane for lane in reversed(self._idle) if lane.use == use), None)
            if lane and self._has_work(use):
                self._idle.remove(lane)
                lane.work.notify()
                return

    def _has_work(self, use: Use) -> bool:
        if use == "spare":
            return not self._free and any(not self._held[client] for client in self._waiting)
        return use == "general" or any(job.small for jobs in self._waiting.values() for job in jobs)

    def _next(self, use: Use) -> J | None:
        if use == "spare" and self._free:
            return None
        for client in sorted(self._waiting, key=self._held.__getitem__):
            if use == "spare" and self._held[client]:
                break
            wanted: Callable[[J], bool] = (lambda job: job.small) if use == "small" else (lambda _: True)
            while (job := next(filter(wanted, self._waiting[client]), None)) is not None:
                self._remove(job)
                # A job that the small lane returned is already running.
                if job.result.running() or job.result.set_running_or_notify_cancel():
                    return job
                if client not in self._waiting:
                    break
        return None

    def _remove(self, job: J) -> None:
        jobs = self._waiting.pop(job.client)
        jobs.remove(job)
        if jobs:
            self._waiting[job.client] = jobs  # the client goes to the end: the others come first
