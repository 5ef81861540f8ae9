"""Which image is decoded next, and in which lane; app.imaging.decoder says what lanes are for.

    queue = FairQueue(general=2)
    queue.put(job)
    job = queue.next("small")       # None if no waiting image is for such a lane; queue.done("small", job) must follow

One thread at a time may use it.
"""

from collections import Counter, deque
from typing import Generic, Literal, Protocol, TypeVar

Use = Literal["general", "small", "spare"]
USES: tuple[Use, ...] = ("general", "small", "spare")  # in the order in which lanes get work


class Job(Protocol):
    """An image to decode; `small`: whether the small lane may take it; `worker`: the number of the one that asks."""

    @property
    def client(self) -> str: ...

    @property
    def worker(self) -> int: ...

    @property
    def small(self) -> bool: ...

    def begin(self) -> bool:
        """Whether it is still wanted."""
        ...


J = TypeVar("J", bound=Job)


def uses(lanes: int) -> list[Use]:
    """What each of so many lanes is for, at least three."""
    return ["small", "spare", *["general"] * (lanes - 2)]  # type: ignore[list-item]


class FairQueue(Generic[J]):
    """The images that wait. `general`: how many general lanes there are.

    The next image is of the client that holds the fewest lanes, and of its images one of the worker that holds the
    fewest: one worker alone could not feed all lanes as fast as they decode.
    """

    def __init__(self, general: int) -> None:
        self._free = general  # general lanes without work
        self._waiting: dict[str, deque[J]] = {}
        self._held: Counter[str] = Counter()  # lanes by client
        self._fed: Counter[int] = Counter()  # lanes by worker

    @property
    def empty(self) -> bool:
        """Whether none waits."""
        return not self._waiting

    def put(self, job: J, *, first: bool = False) -> None:
        jobs = self._waiting.setdefault(job.client, deque())
        jobs.insert(0 if first else len(jobs), job)

    def discard(self, job: J) -> None:
        """Forget it, if it waits."""
        jobs = self._waiting.get(job.client)
        if jobs and job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._waiting[job.client]

    def next(self, use: Use) -> J | None:
        """Take the next image for a lane that has none."""
        if not self._waiting or (use == "spare" and self._free):
            return None
        for client in sorted(self._waiting, key=self._held.__getitem__):
            if use == "spare" and self._held[client]:
                break
            while job := self._first_of(client, use):
                self._remove(job)
                if job.begin():
                    self._free -= use == "general"
                    self._held[job.client] += 1
                    self._fed[job.worker] += 1
                    return job
        return None

    def _first_of(self, client: str, use: Use) -> J | None:
        jobs = (job for job in self._waiting.get(client, ()) if job.small or use != "small")
        return min(jobs, key=lambda job: self._fed[job.worker], default=None)

    def done(self, use: Use, job: J) -> None:
        """The lane is free again."""
        self._free += use == "general"
        self._fed[job.worker] -= 1
        self._held[job.client] -= 1
        if not self._held[job.client]:
            del self._held[job.client]

    def holds(self, client: str) -> int:
        """How many lanes a client has."""
        return self._held[client]

    def has_work(self, use: Use) -> bool:
        """Whether an image may wait for a lane of this use."""
        if use == "spare":
            return not self._free and any(not self._held[client] for client in self._waiting)
        return bool(self._waiting) and (
            use == "general" or any(job.small for jobs in self._waiting.values() for job in jobs)
        )

    def clear(self) -> list[J]:
        """Take all that wait."""
        jobs = [job for jobs in self._waiting.values() for job in jobs]
        self._waiting.clear()
        return jobs

    def _remove(self, job: J) -> None:
        jobs = self._waiting.pop(job.client)
        jobs.remove(job)
        if jobs:
            self._waiting[job.client] = jobs  # the client goes to the end: the others come first
