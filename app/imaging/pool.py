"""Decoding processes that several workers have together. The supervisor starts them, lends them and ends them.

    pool = Pool(threads=2, limits=Limits())
    pool.open(selector)                     # whose events call back
    membership = pool.admit(0)              # for worker 0, before it is forked, where pool.leave() follows
    pool.bury(pid, exit_code)               # whenever a child of this process has ended

A worker asks for a process for an image, and gets its socket when its client's turn has come; see
app.imaging.decoder for lanes and turns. It talks to the process itself, so an image is copied no more often than with
processes of the worker's own. Only the parent of a process learns how it ended, and tells the worker, which tells the
client.

What a worker has borrowed when it ends is ended, too: nobody knows how much of an image was sent.
"""

import math
import os
import selectors
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ..sandbox.channel import ANSWER, MOST_READY, READY
from ..sandbox.conversation import reason_of
from ..sandbox.process import GONE_SECONDS, START_SECONDS, spawn
from ..workers.membership import Membership
from .fair_queue import USES, FairQueue, Use, uses
from .limits import Limits
from .own_processes import IDLE_SECONDS
from .pixel_budget import Claim, PixelClaims
from .pool_protocol import FIRST, LONGEST_CLIENT, NOTICE, ORDER, SILENT, SMALL, UNKNOWN, Ask, Lent, Tell
from .process import WORKER


@dataclass(eq=False)
class _Image:
    """One that a worker wants to decode."""

    worker: int
    number: int
    client: str
    small: bool
    deadline: float
    withdrawn: bool = False

    def begin(self) -> bool:
        return time.monotonic() < self.deadline  # else its worker withdraws it, unless it hangs


@dataclass(eq=False)
class _Process:
    """`due`: when it is killed: it does not start, was idle or lent for long, or goes on although it is lost."""

    pid: int
    channel: socket.socket
    due: float
    ready: bool = False
    borrower: int | None = None  # the worker that has it, or had it last
    known: set[int] = field(default_factory=set)  # to these workers: they have its socket
    verdict: str = ""  # the reason that it was killed for
    reason: str = ""  # why it has ended


@dataclass(eq=False)
class _Lane:
    number: int
    use: Use
    process: _Process | None = None
    image: _Image | None = None
    loan: int = 0  # its number, while a worker has the process
    lost: bool = False  # the worker says that the process has ended
    claim: Claim | None = None  # of pixels, for its image


@dataclass(eq=False)
class _Worker:
    channel: socket.socket
    images: dict[int, _Image] = field(default_factory=dict)  # that wait, by their numbers


class Pool:
    """`threads`: that decode at once. There is one general lane more, since a process waits while it changes hands.

    Each lane has a process. For one thread.
    """

    def __init__(self, threads: int, limits: Limits, idle_seconds: float = IDLE_SECONDS) -> None:
        general = threads + 1
        self._limits = limits
        self._idle_seconds = idle_seconds
        self._queue: FairQueue[_Image] = FairQueue(general)
        # Of those of one use, the one used last comes first.
        self._lanes = [_Lane(number, use) for number, use in enumerate(uses(general + 2))]
        self._claims = PixelClaims(limits.max_inflight_pixels)
        self._workers: dict[int, _Worker] = {}
        self._processes: dict[int, _Process] = {}  # those that have not been buried, by their ids
        self._loans = 0
        self._possible: bool | None = None  # whether processes can be started: None before the first has
        self._impossible = ""  # why not, until a worker was told

    def open(self, selector: selectors.BaseSelector) -> None:
        """Begin, and start a process to see whether that is possible."""
        self._selector = selector
        self._start(self._lanes[2])  # the first general one

    def close(self) -> None:
        """End all processes, and wait for their ends."""
        for number in list(self._workers):
            self.dismiss(number)
        for lane in self._lanes:
            self._drop(lane)
        for pid in self._processes:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._processes.clear()

    def pids(self) -> list[int]:
        return list(self._processes)

    # Workers

    def admit(self, number: int) -> Membership:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._workers[number] = worker = _Worker(ours)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._read(number, worker))
        self._tell_impossible()
        return Membership(theirs, len(self._lanes))

    def leave(self) -> None:
        for worker in self._workers.values():
            worker.channel.close()
        for process in self._processes.values():
            process.channel.close()
        for lane in self._lanes:
            if lane.process:  # one that has been buried, and is still lent
                lane.process.channel.close()

    def dismiss(self, number: int) -> None:
        worker = self._workers.pop(number, None)
        if not worker:
            return
        self._forget(worker.channel)
        for image in worker.images.values():
            self._queue.discard(image)
        for process in self._processes.values():
            process.known.discard(number)
        for lane in self._of(number):
            if lane.loan:
                self._drop(lane)
                self._free(lane)
            elif lane.image:
                lane.image.withdrawn = True  # its process is about to start
        self._lend_all()

    def _read(self, number: int, worker: _Worker) -> None:
        while self._workers.get(number) is worker:
            try:
                order = worker.channel.recv(ORDER.size + LONGEST_CLIENT)
            except BlockingIOError:
                return
            except OSError:
                order = b""
            if not order:
                self.dismiss(number)
                return
            ask, subject, flags, value = ORDER.unpack_from(order)
            client = order[ORDER.size :].decode(errors="replace")
            self._obey(number, worker, ask, subject, flags, value, client)
            self._lend_all()

    def _obey(self, sender: int, worker: _Worker, ask: int, number: int, flags: int, value: float, client: str) -> None:
        if ask == Ask.WANT:
            worker.images[number] = image = _Image(sender, number, client, bool(flags & SMALL), value)
            self._queue.put(image, first=bool(flags & FIRST))
        elif ask == Ask.WITHDRAW:
            if withdrawn := worker.images.pop(number, None):
                self._queue.discard(withdrawn)
        elif lane := next((lane for lane in self._of(sender) if lane.loan == number), None):
            if ask == Ask.RETURN:
                self._take_back(lane, known=not flags & UNKNOWN)
            elif ask == Ask.CLAIM:
                self._claim(lane, int(value))
            elif lane.process:
                self._seek(lane, lane.process, silent=bool(flags & SILENT))
        elif ask == Ask.LOST:  # the loan has been ended
            self._send(sender, NOTICE.pack(Tell.ENDED, 0, number, 0, 0) + b"time")

    def _of(self, worker: int) -> list[_Lane]:
        """The lanes that have an image of this worker."""
        return [lane for lane in self._lanes if lane.image and lane.image.worker == worker]

    # Loans

    def _lend_all(self) -> None:
        """Give lanes without an image those that wait."""
        if self._queue.empty:
            return
        for lane in sorted(self._lanes, key=lambda lane: USES.index(lane.use)):
            if not lane.image and (image := self._queue.next(lane.use)):
                self._workers[image.worker].images.pop(image.number, None)
                lane.image = image
                if not lane.process and self._possible is not False:
                    self._start(lane)  # and lend it when it is ready
                elif not lane.process or lane.process.ready:
                    self._lend(lane)

    def _lend(self, lane: _Lane, reason: str = "") -> None:
        """Let a worker have the lane's process, or know the reason why there is none."""
        assert lane.image
        image, process = lane.image, lane.process
        self._loans += 1
        lane.loan = self._loans
        lent, descriptors = Lent.NOTHING, []
        if process:
            lent = Lent.KNOWN if image.worker in process.known else Lent.NEW
            descriptors = [process.channel.fileno()] if lent == Lent.NEW else []
        notice = NOTICE.pack(Tell.LENT, image.number, lane.loan, lane.number, lent)
        if image.withdrawn or not self._send(image.worker, notice + reason.encode(), descriptors):
            self._free(lane)
        elif process:
            process.known.add(image.worker)
            process.borrower = image.worker
            process.due = image.deadline + self._limits.cpu_seconds + GONE_SECONDS

    def _take_back(self, lane: _Lane, *, known: bool) -> None:
        if lane.process and lane.process.borrower is not None and not known:
            lane.process.known.discard(lane.process.borrower)
        if lane.process and lane.process.reason:
            self._lose(lane, lane.process)
        self._free(lane)

    def _claim(self, lane: _Lane, pixels: int) -> None:
        """An image waits for pixels; it is first if its client decodes nothing else."""
        if lane.image and not lane.claim:
            lane.claim = self._claims.add(pixels, first=self._queue.holds(lane.image.client) <= 1)
            self._grant()

    def _grant(self) -> None:
        for claim in self._claims.grant():
            lane = next(lane for lane in self._lanes if lane.claim is claim)
            assert lane.image
            self._send(lane.image.worker, NOTICE.pack(Tell.GRANTED, 0, lane.loan, 0, 0))

    def _seek(self, lane: _Lane, process: _Process, *, silent: bool) -> None:
        """A worker has lost the process: say how it ended, as soon as that is known."""
        lane.lost = True
        if process.reason:
            self._lose(lane, process)
            self._free(lane)
        elif silent:
            self._kill(process, "time")
        else:
            process.due = time.monotonic() + GONE_SECONDS

    def _lose(self, lane: _Lane, process: _Process) -> None:
        """A process has ended: tell the worker that has it or had it last."""
        self._forget(process.channel)
        lane.process = None
        if process.borrower is not None:
            notice = NOTICE.pack(Tell.ENDED, 0, lane.loan if lane.lost else 0, 0, 0)
            self._send(process.borrower, notice + process.reason.encode())

    def _free(self, lane: _Lane) -> None:
        assert lane.image
        self._queue.done(lane.use, lane.image)
        claim, lane.claim = lane.claim, None
        lane.image, lane.loan, lane.lost = None, 0, False
        if claim:
            self._claims.drop(claim)
            self._grant()
        if lane.process:
            lane.process.due = time.monotonic() + self._idle_seconds
        self._lanes.remove(lane)
        self._lanes.insert(0, lane)

    def _send(self, worker: int, notice: bytes, descriptors: Sequence[int] = ()) -> bool:
        if worker not in self._workers:
            return False
        try:
            socket.send_fds(self._workers[worker].channel, [notice], descriptors)
        except OSError:  # it is ending
            return False
        return True

    # Processes

    def bury(self, pid: int, exit_code: int) -> None:
        process = self._processes.pop(pid, None)
        if not process:
            return
        process.reason = process.verdict or reason_of(exit_code)
        lane = self._lane_of(process)
        if lane and not process.ready and exit_code == -signal.SIGKILL:
            self._drop(lane)  # for lack of memory, maybe: that says nothing of the next one
            if lane.image and lane.image.begin():
                self._start(lane)
            elif lane.image:
                self._lend(lane)
        elif lane and not process.ready:
            self._fail(lane, "it ends at once")
        elif lane and lane.lost:
            self._lose(lane, process)
            self._free(lane)
        elif lane and not lane.loan:
            self._lose(lane, process)
        # Else the worker that has it will notice.
        self._lend_all()

    @property
    def due(self) -> float:
        return min((lane.process.due for lane in self._lanes if lane.process), default=math.inf)

    def tend(self) -> None:
        now = time.monotonic()
        for lane in list(self._lanes):
            process = lane.process
            if not process or now < process.due:
                continue
            if not process.ready:
                self._fail(lane, f"it does not start in {START_SECONDS:.0f} seconds")
            elif lane.lost:
                self._kill(process, "crash")  # its answer was none
            else:
                self._drop(lane)  # it was idle, or the worker that has it hangs
                if lane.image:
                    self._free(lane)
        self._lend_all()

    def _start(self, lane: _Lane) -> None:
        """Give a lane a process, which is not ready yet. If that is impossible, the lane's image goes without."""
        try:
            started, channel = spawn(WORKER, self._limits.memory_bytes, self._limits.cpu_seconds)
        except OSError as error:
            self._fail(lane, str(error))
            return
        started.returncode = 0  # the supervisor waits for all its children: Popen must not
        process = _Process(started.pid, channel, due=time.monotonic() + START_SECONDS)
        self._processes[process.pid] = process
        lane.process = process
        self._selector.register(channel, selectors.EVENT_READ, lambda: self._greet(process))

    def _greet(self, process: _Process) -> None:
        """A process says that it is ready, in one piece, or has ended."""
        lane = self._lane_of(process)
        if not lane:
            return
        try:
            ready = process.channel.recv(ANSWER.size + MOST_READY)
        except OSError:
            ready = b""
        self._selector.unregister(process.channel)
        if len(ready) < ANSWER.size or ANSWER.unpack_from(ready)[0] != READY:
            process.due = time.monotonic() + GONE_SECONDS
            return
        self._possible = process.ready = True
        process.due = time.monotonic() + self._idle_seconds
        if lane.image:
            self._lend(lane)
            self._lend_all()

    def _fail(self, lane: _Lane, reason: str) -> None:
        """A process could not be started. After the first one no other is tried."""
        self._drop(lane)
        if self._possible is None:
            self._possible = False
            self._impossible = reason
            self._tell_impossible()
        if lane.image:
            self._lend(lane, reason)

    def _tell_impossible(self) -> None:
        """Have a worker log that no process can be started: this process writes no log."""
        if self._impossible and self._workers:
            self._send(next(iter(self._workers)), NOTICE.pack(Tell.IMPOSSIBLE, 0, 0, 0, 0) + self._impossible.encode())
            self._impossible = ""

    def _drop(self, lane: _Lane) -> None:
        """End a lane's process, if there is one."""
        if process := lane.process:
            lane.process = None
            self._forget(process.channel)
            self._kill(process, "")

    def _kill(self, process: _Process, verdict: str) -> None:
        process.due = math.inf
        process.verdict = verdict
        if process.pid in self._processes:  # else it has been waited for
            os.kill(process.pid, signal.SIGKILL)

    def _lane_of(self, process: _Process) -> _Lane | None:
        return next((lane for lane in self._lanes if lane.process is process), None)

    def _forget(self, channel: socket.socket) -> None:
        with suppress(KeyError):
            self._selector.unregister(channel)
        channel.close()
