"""Decoding processes of this process alone: each lane is a thread with a process.

Processes start when they are needed and end after IDLE_SECONDS without work.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ..errors import Problem, Unavailable
from ..sandbox.conversation import ProcessEnded
from .job import Job
from .lanes import Lane, Lanes
from .limits import Limits
from .pixel_budget import PixelBudget
from .process import DecodingProcess, problem_of

IDLE_SECONDS = 60.0
logger = logging.getLogger("app.decoder")


class OwnProcesses:
    """See app.imaging.decoder. `general`: how many general lanes there are."""

    def __init__(self, general: int, limits: Limits, on_kill: Callable[[str], None], idle_seconds: float) -> None:
        self.limits = limits  # for processes that start from now on
        self._on_kill = on_kill
        self._budget = PixelBudget(limits.max_inflight_pixels)
        self._lanes = Lanes(general=general, idle_seconds=idle_seconds)
        self._living: set[DecodingProcess] = set()
        self._impossible = False
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name=f"decode-{lane.use}-{number}", daemon=True)
            for number, lane in enumerate(self._lanes.all)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, job: Job[Any], *, first: bool = False) -> None:
        self._lanes.put(job, first=first)

    def withdraw(self, job: Job[Any]) -> None:
        self._lanes.withdraw(job)

    def hold(self, job: Job[Any], pixels: int) -> AbstractContextManager[bool]:
        return self._budget.hold(pixels, job.deadline, first=self._lanes.holds(job.client) <= 1)

    def pids(self) -> list[int]:
        return [process.pid for process in set(self._living)]

    def check(self) -> bool:
        """Start and end one process."""
        try:
            process = self._start()
        except ProcessEnded:  # which says nothing of the next one
            return False
        except OSError as error:
            if not self._lanes.closed:
                self._impossible = True
                logger.warning("decoding processes cannot be started: %s; AVIF is not accepted", error)
            return False
        self._end(process)
        return True

    def close(self) -> None:
        self._lanes.close()
        for process in set(self._living):
            process.end()
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
                job.decode(process, lane.use, job)()
            except ProcessEnded as ended:
                self._end(process)
                process = None
                if self._lanes.closed:
                    job.fail(Unavailable("the service is shutting down"))
                else:
                    self._on_kill(ended.reason)
                    job.fail(problem_of(ended))
            except Problem as problem:
                job.fail(problem)
            except Exception as error:  # a bug, or no memory: what the process says next may be about this image
                self._end(process)
                process = None
                job.fail(error)
            finally:
                self._lanes.done(lane, job)
                del job  # an idle lane keeps no image
        self._end(process)

    def _start_if_possible(self) -> DecodingProcess | None:
        if self._impossible:
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
