"""Decoding processes that the supervisor lends to this worker; see app.imaging.pool.

    processes = BorrowedProcesses(worker.pool, cpu_seconds=2.0, on_kill=metrics.killed)
    decoder = Decoder(..., borrowed=processes)
    processes.close()

Threads wait for processes. One that gets a process decodes the image that it was asked for, so that an image takes one
change of threads here, as with processes of this worker's own.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import Problem, Unavailable
from ..sandbox.conversation import ProcessEnded
from ..workers.membership import Membership
from .fair_queue import uses
from .job import Job
from .pool_protocol import FIRST, LONGEST_CLIENT, LONGEST_NOTICE, NOTICE, ORDER, SILENT, SMALL, UNKNOWN, Ask, Lent, Tell
from .process import DecodingConversation, problem_of, silence_seconds

SHUTTING_DOWN = "the service is shutting down"
logger = logging.getLogger("app.decoder")


class LentProcess(DecodingConversation):
    """A process of the supervisor, which alone learns how it ends. `descriptor`: of its socket."""

    def __init__(self, descriptor: int, silence_seconds: float) -> None:
        super().__init__(socket.socket(fileno=descriptor))
        self._channel.settimeout(silence_seconds)

    def failed(self, error: Exception) -> ProcessEnded:
        """The reason is "time", or a guess in place of what the supervisor knows."""
        return ProcessEnded("time" if isinstance(error, TimeoutError) else "crash")

    def close(self) -> None:
        self._channel.close()


class BorrowedProcesses:
    """See app.imaging.decoder. on_kill: is called for each process that ended while this worker used it, or last."""

    def __init__(self, membership: Membership, *, cpu_seconds: float, on_kill: Callable[[str], None]) -> None:
        self._channel = membership.channel
        self._silence_seconds = silence_seconds(cpu_seconds)
        self._on_kill = on_kill
        self._closed = False
        self._waiting: dict[int, Job[Any]] = {}  # by their numbers
        self._lost: dict[int, Job[Any]] = {}  # whose process has ended, by the loan
        self._claims: dict[int, threading.Event] = {}  # of pixels, by the loan
        self._uses = uses(membership.processes)  # of the lanes, by their numbers
        self._known: dict[int, tuple[int, LentProcess]] = {}  # by the lane that has it, with the loan that brought it
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._serve, name=f"decode-{number}", daemon=True)
            for number in range(membership.processes + 1)  # one more: all others may wait for pixels
        ]
        for thread in self._threads:
            thread.start()

    def put(self, job: Job[Any], *, first: bool = False) -> None:
        with self._lock:
            if self._closed:
                raise Unavailable(SHUTTING_DOWN)
            self._waiting[job.number] = job
        client = job.client.encode()[:LONGEST_CLIENT]
        if not self._send(Ask.WANT, job.number, SMALL * job.small | FIRST * first, job.deadline, client):
            with self._lock:
                if not self._waiting.pop(job.number, None):
                    return  # it was answered, as this worker closes
            raise Unavailable("the service is busy: too many images wait to be decoded; try again later")

    def withdraw(self, job: Job[Any]) -> None:
        with self._lock:
            waits = self._waiting.pop(job.number, None)
        if waits:
            self._send(Ask.WITHDRAW, job.number)

    @contextmanager
    def hold(self, job: Job[Any], pixels: int) -> Iterator[bool]:
        granted = threading.Event()
        with self._lock:
            self._claims[job.loan] = granted
        try:
            self._send(Ask.CLAIM, job.loan, value=pixels)
            yield granted.wait(min(max(0.0, job.deadline - time.monotonic()), threading.TIMEOUT_MAX))
        finally:
            with self._lock:
                del self._claims[job.loan]

    def check(self) -> bool:
        """The pool does it, once for all workers."""
        return True

    def pids(self) -> list[int]:
        return []

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._channel.shutdown(socket.SHUT_RDWR)  # the pool ends what this worker has borrowed; the threads wake up
        for thread in self._threads:
            thread.join()
        for _, process in self._known.values():
            process.close()
        self._channel.close()

    def _serve(self) -> None:
        """Run a thread: use one loan after another."""
        while True:
            content, descriptors = self._receive()
            if not content:
                break
            tell, number, loan, lane, lent = NOTICE.unpack_from(content)
            reason = content[NOTICE.size :].decode(errors="replace")
            if tell == Tell.LENT:
                if reason:
                    logger.warning("a decoding process cannot be started: %s", reason)
                self._use(number, loan, lane, lent, descriptors)
            elif tell == Tell.GRANTED:
                self._grant(loan)
            elif tell == Tell.ENDED:
                self._bury(loan, reason)
            else:
                logger.warning("decoding processes cannot be started: %s; AVIF is not accepted", reason)
        self._fail_all()

    def _receive(self) -> tuple[bytes, list[int]]:
        """A message, empty when there will be no more."""
        try:
            content, descriptors, _, _ = socket.recv_fds(self._channel, LONGEST_NOTICE, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return b"", []
        return content, descriptors

    def _use(self, number: int, loan: int, lane: int, lent: int, descriptors: list[int]) -> None:
        with self._lock:
            job = self._waiting.pop(number, None)
            brought, process = self._known.get(lane, (0, None)) if lent == Lent.KNOWN else (0, None)
        if brought > loan:
            process = None  # this loan has been ended, and another thread has the lane's next process
        if descriptors:
            process = self._keep(lane, loan, LentProcess(descriptors[0], self._silence_seconds))
        missing = lent != Lent.NOTHING and not process
        if not job or not job.begin():
            self._send(Ask.RETURN, loan, UNKNOWN * missing)
            return
        job.loan = loan
        try:
            if missing:
                raise Unavailable("the service is busy: it may not open more files")
            finish = job.decode(process, self._uses[lane], job)
        except ProcessEnded as ended:
            self._forget(lane, process)
            with self._lock:
                self._lost[loan] = job
            self._send(Ask.LOST, loan, SILENT if ended.reason == "time" else 0)
        except Problem as problem:
            self._send(Ask.RETURN, loan, UNKNOWN * missing)
            job.fail(problem)
        except Exception as error:  # a bug, or no memory: what the process says next may be about this image
            self._forget(lane, process)
            self._send(Ask.LOST if process else Ask.RETURN, loan)
            job.fail(error)
        else:
            self._send(Ask.RETURN, loan)  # others wait for it
            finish()

    def _keep(self, lane: int, loan: int, process: LentProcess) -> LentProcess | None:
        """In place of the lane's former process. None if that one is the later one: this loan has been ended."""
        with self._lock:
            brought, former = self._known.get(lane, (0, None))
            if brought < loan:
                self._known[lane] = loan, process
        if brought > loan:
            process.close()
            return None
        if former:
            former.close()
        return process

    def _forget(self, lane: int, process: LentProcess | None) -> None:
        with self._lock:
            if self._known.get(lane, (0, None))[1] is process:
                self._known.pop(lane, None)
        if process:
            process.close()

    def _grant(self, loan: int) -> None:
        with self._lock:
            if granted := self._claims.get(loan):
                granted.set()

    def _bury(self, loan: int, reason: str) -> None:
        self._on_kill(reason)
        with self._lock:
            job = self._lost.pop(loan, None)
        if job:
            job.fail(problem_of(ProcessEnded(reason)))

    def _fail_all(self) -> None:
        with self._lock:
            self._closed = True
            left = [*self._waiting.values(), *self._lost.values()]
            self._waiting.clear()
            self._lost.clear()
            for granted in self._claims.values():
                granted.set()  # the process has ended, which its thread will notice
        for job in left:
            if job.begin():
                job.fail(Unavailable(SHUTTING_DOWN))

    def _send(self, ask: Ask, number: int, flags: int = 0, value: float = 0.0, client: bytes = b"") -> bool:
        """Whether the pool will get it. Only this class's threads wait until there is room, never an event loop."""
        wait = 0 if ask in (Ask.RETURN, Ask.LOST, Ask.CLAIM) else socket.MSG_DONTWAIT
        try:
            self._channel.send(ORDER.pack(ask, number, flags, value) + client, wait)
        except OSError:  # there is no room, it has ended, or this worker is closing
            return False
        return True
