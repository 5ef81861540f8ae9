"""Starts the workers, replaces those that end, passes signals on, and ends when the last has ended.

    Supervisor(Board(workers=2), models, work, merge=merge, stop_seconds=17).run(sockets)      # WorkersError

It serves nothing itself. It has loaded the models before it forks, so that workers share the memory of all that they do
not change, and start in a fraction of a second. It has no thread then, since a forked process has only the one that
forked: a worker that ends while a model is loaded is replaced after that.

A load is of all workers or of none: the supervisor loads the model, then each worker does, beside the one that answers.
When all have, each is told to answer with it; when one cannot, all go on as they were.
"""

import gc
import logging
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

from ..errors import Internal, LoadFailed, LoadInProgress, Problem
from .board import ENDED, GENERATION, SERVING, Board
from .membership import Membership, Pool
from .post import ANSWER, Post
from .worker import Worker

QUICK_SECONDS = 1.0  # a worker that serves for less has ended as soon as it started
MOST_QUICK = 8  # such ends in a row, after which there is no use in going on
PAUSES = (0.0, 0.1, 0.2, 0.5, 1.0)  # before the next worker, after none, one, two … quick ends
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
LOAD_SECONDS = 120.0  # for all workers to load a model


class WorkersError(RuntimeError):
    """The workers cannot go on. The message is one line for the operator."""


class Models(Protocol):
    """The models that new workers begin with. Each of these may take long and raises a Problem."""

    @property
    def names(self) -> Iterable[str]: ...

    def prepare(self, name: str) -> str:
        """Load what the model's folder holds now. Returns the digest of the bundle."""

    def take_over(self) -> None:
        """New workers get what was prepared."""

    def drop(self) -> None:
        """Forget what was prepared."""


@dataclass
class _Process:
    number: int  # the worker's
    forked: float
    started: float | None = None


@dataclass
class _Load:
    """`asked` by a worker, with the number of its message; None: by a signal."""

    name: str
    asked: tuple[int, int] | None
    thread: threading.Thread | None = None  # until it has loaded the model here
    done: bool = False
    digest: str = ""
    problem: Problem | None = None
    waiting: frozenset[int] = frozenset()  # process ids of the workers that are loading it
    deadline: float = 0.0


class Supervisor:
    """`work(worker)` is what a worker does, in its own process, until its exit code. `models` are for it to take.

    `merge(one, other)` adds up what two workers have published, either of which may be empty. `stop_seconds`: after
    SIGTERM, for workers to end by themselves. `pool`: of processes that all workers use.
    """

    def __init__(
        self,
        board: Board,
        models: Models,
        work: Callable[[Worker], int],
        *,
        merge: Callable[[bytes, bytes], bytes],
        stop_seconds: float,
        pool: Pool,
    ) -> None:
        self._models = models
        self._work = work
        self._merge = merge
        self._stop_seconds = stop_seconds
        self._pool = pool
        self._board = board
        self._post = Post(board.workers)
        self._processes: dict[int, _Process] = {}  # by process id
        self._due: dict[int, tuple[float, str | None]] = dict.fromkeys(range(board.workers), (0.0, None))
        self._quick = 0
        self._generation = 0
        self._failures: dict[int, str] = {}
        self._signals: deque[int] = deque()
        self._stopping: float | None = None  # when workers that have not ended are killed
        self._error: WorkersError | None = None
        self._load: _Load | None = None
        self._to_load: deque[str] = deque()  # by SIGHUP

    def run(self, sockets: list[socket.socket]) -> None:
        """Returns when all workers have ended after a signal. Raises WorkersError."""
        self._sockets = sockets
        self._lifeline = os.pipe()
        self._wakeup = socket.socketpair()
        for end in self._wakeup:
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
        former = {number: signal.signal(number, self._note) for number in self._handled()}
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._wakeup[0], selectors.EVENT_READ, self._wake)
                selector.register(self._post.box(self._post.supervisor), selectors.EVENT_READ, self._read_all)
                gc.collect()
                gc.freeze()  # collections in the workers then leave these pages shared
                self._pool.open(selector)
                try:
                    self._supervise(selector)
                finally:
                    self._pool.close()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in former.items():
                signal.signal(number, handler)
            self._post.close()
            for end in self._wakeup:
                end.close()
            for descriptor in self._lifeline:
                os.close(descriptor)
        if self._error:
            raise self._error

    def _supervise(self, selector: selectors.BaseSelector) -> None:
        while self._processes or (self._due and self._stopping is None):
            self._start_due()
            for key, _ in selector.select(self._patience()):
                key.data()
            self._pool.tend()
            self._go_on_loading()
            if self._stopping is not None and time.monotonic() > self._stopping:
                self._send(signal.SIGKILL)

    def _wake(self) -> None:
        """After a signal, or when a model was loaded."""
        while _drained(self._wakeup[0]):
            pass
        while self._signals:
            self._obey(self._signals.popleft())
        self._read_all()  # a worker that has ended may have said why
        self._reap()

    def _handled(self) -> list[int]:
        """In a terminal, SIGHUP goes on to say that the terminal is gone; under nohup it stays ignored."""
        terminal = sys.stderr is not None and sys.stderr.isatty()
        loads = [signal.SIGHUP] if not terminal and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL else []
        return [*SIGNALS, *loads]

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)

    def _patience(self) -> float | None:
        """Seconds until something is due."""
        if self._to_load and not self._load and self._stopping is None:
            return 0.0
        times = [] if self._load else [due for due, _ in self._due.values()]
        times += [self._stopping] if self._stopping is not None else []
        times += [self._load.deadline] if self._load and self._load.waiting else []
        patience = [] if (of_pool := self._pool.patience()) is None else [of_pool]
        patience += [max(0.0, min(times) - time.monotonic())] if times else []
        return min(patience) if patience else None

    # Workers

    def _start_due(self) -> None:
        if self._load or self._stopping is not None:
            return
        for number, (due, replaces) in list(self._due.items()):
            if due <= time.monotonic() and number in self._due:  # else the one before it could not be started
                del self._due[number]
                self._start(number, replaces)

    def _start(self, number: int, replaces: str | None) -> None:
        while self._post.receive(number):  # messages to the one before it
            pass
        self._generation += 1
        self._board.parts[number].clear()
        self._board.parts[number].numbers[GENERATION] = self._generation
        try:
            membership = self._pool.admit(number)
            pid = os.fork()
        except OSError as error:
            self._give_up(f"a worker cannot be started: {error.strerror}")
            return
        if pid == 0:
            self._become(number, replaces, membership)
        membership.channel.close()
        self._processes[pid] = _Process(number, time.monotonic())

    def _become(self, number: int, replaces: str | None, membership: Membership) -> None:
        """In the new process: work, and end."""
        code = 1
        try:
            os.setpgid(0, 0)  # a terminal's Ctrl-C is for the supervisor, which passes it on
            signal.set_wakeup_fd(-1)
            for handled in SIGNALS:
                signal.signal(handled, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            self._signals.clear()
            os.close(self._lifeline[1])
            self._pool.leave()
            code = self._work(Worker(self._board, self._post, number, self._lifeline[0], replaces, membership))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            logging.getLogger("app").exception("a worker met a bug")
        finally:
            logging.shutdown()
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            if process := self._processes.pop(pid, None):
                self._bury(pid, process, code)
            else:
                self._pool.bury(pid, code)  # or it is an orphan that process 1 of a container inherits

    def _bury(self, pid: int, process: _Process, code: int) -> None:
        """Keep what an ended worker has counted, and let another take its place."""
        number, part, ended = process.number, self._board.parts[process.number], self._board.supervisor
        with suppress(ValueError):  # too much; the service goes on without the counts of this one
            counts = self._merge(ended.published()[ENDED.size :], part.published())
            ended.publish(ENDED.pack(part.numbers[GENERATION]) + counts)
        part.clear()
        self._pool.dismiss(number)
        if self._load and pid in self._load.waiting:
            self._load.waiting -= {pid}
        reason = self._failures.pop(number, "") or (signal.Signals(-code).name if code < 0 else f"exit code {code}")
        if self._stopping is not None:
            return
        if not self._begun and process.started is None and code:
            self._give_up(reason)
            return
        now = time.monotonic()
        quick = process.started is None or now - process.started < QUICK_SECONDS
        self._quick = self._quick + 1 if quick else 0
        if self._quick >= MOST_QUICK:
            self._give_up(f"{self._quick} workers ended as soon as they had started, the last one with {reason}")
            return
        self._due[number] = now + PAUSES[min(self._quick, len(PAUSES) - 1)], reason

    @property
    def _begun(self) -> bool:
        return bool(self._board.supervisor.numbers[SERVING])

    def _give_up(self, reason: str) -> None:
        self._error = WorkersError(reason)
        self._stop(signal.SIGTERM if self._begun else signal.SIGKILL)

    # Signals

    def _obey(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._to_load.extend(name for name in self._models.names if name not in self._to_load)
        elif number != signal.SIGCHLD:
            self._stop(number)

    def _stop(self, number: int) -> None:
        if self._stopping is None:
            self._stopping = time.monotonic() + self._stop_seconds
            self._due.clear()
            for bound in self._sockets:
                bound.close()  # the workers have them, and close them when they take no more
        self._send(number)

    def _send(self, number: int) -> None:
        for pid in self._processes:
            os.kill(pid, number)  # it is not reaped yet, so this is no other process

    # Messages

    def _read_all(self) -> None:
        while message := self._post.receive(self._post.supervisor):
            self._read(message)

    def _read(self, message: Mapping[str, Any]) -> None:
        sender, kind, content = message["from"], message["kind"], message["content"]
        found = next(((pid, process) for pid, process in self._processes.items() if process.number == sender), None)
        if kind == "started" and found:
            found[1].started = time.monotonic()
            if self._stopping is not None:
                os.kill(found[0], signal.SIGTERM)  # it may have come too early to be obeyed
            elif not self._begun and all(process.started for process in self._processes.values()) and not self._due:
                self._board.supervisor.numbers[SERVING] = 1
                self._post.send(sender, "begin", None, self._post.supervisor)
        elif kind == "failed":
            self._failures[sender] = str(content)
        elif kind == "load":
            self._begin_load(str(content), (sender, message["number"]))
        elif kind == ANSWER and found and self._load and found[0] in self._load.waiting:
            self._load.waiting -= {found[0]}
            if content is not None:
                self._load.problem = self._load.problem or LoadFailed(str(content))

    # Loading a model

    def _begin_load(self, name: str, asked: tuple[int, int] | None) -> None:
        if self._load:
            self._answer(asked, LoadInProgress(f"{self._load.name!r} is being loaded: load the next model after that"))
            return
        self._load = load = _Load(name, asked)
        self._tell_all("loading", name)
        load.thread = threading.Thread(target=self._prepare, args=(load,), name="load")
        load.thread.start()

    def _prepare(self, load: _Load) -> None:
        try:
            load.digest = self._models.prepare(load.name)
        except Problem as problem:
            load.problem = problem
        except Exception:
            load.problem = Internal("the service met a bug; the model that was there goes on")
        finally:
            load.done = True
            with suppress(OSError):  # the supervisor has ended meanwhile
                self._wakeup[1].send(b"\0")

    def _go_on_loading(self) -> None:
        if not self._load and self._to_load and self._stopping is None:
            self._begin_load(self._to_load.popleft(), None)
        load = self._load
        if not load or not load.done:
            return
        if load.thread:
            load.thread.join()  # it has nothing more to do; a fork needs it gone
            load.thread = None
            if not load.problem:
                load.deadline = time.monotonic() + LOAD_SECONDS
                content = {"name": load.name, "digest": load.digest}
                numbers = {pid: process.number for pid, process in self._processes.items()}
                load.waiting = frozenset(pid for pid in numbers if self._tell(numbers[pid], "prepare", content))
                if len(load.waiting) < len(numbers):
                    load.problem = LoadFailed("a worker takes no messages; the model that was there goes on")
        if load.waiting and time.monotonic() > load.deadline:
            load.problem = load.problem or LoadFailed("a worker is silent; the model that was there goes on")
            load.waiting = frozenset()
        if not load.waiting:
            self._end_load(load)

    def _end_load(self, load: _Load) -> None:
        self._load = None
        if load.problem:
            self._models.drop()
        else:
            self._models.take_over()
        content = {"name": load.name, "reason": load.problem.detail if load.problem else None}
        for pid, process in self._processes.items():
            if not self._post.send(process.number, "loaded", content, self._post.supervisor):
                os.kill(pid, signal.SIGTERM)  # it would go on with the former model; the next one begins with this one
        self._answer(load.asked, load.problem)

    def _answer(self, asked: tuple[int, int] | None, problem: Problem | None) -> None:
        if asked:
            content = [problem.code, problem.detail] if problem else None
            self._post.send(asked[0], ANSWER, content, self._post.supervisor, asked[1])

    def _tell(self, number: int, kind: str, content: Any) -> bool:
        return self._post.send(number, kind, content, self._post.supervisor, number=1)

    def _tell_all(self, kind: str, content: Any) -> None:
        for process in self._processes.values():
            self._post.send(process.number, kind, content, self._post.supervisor)


def _drained(readable: socket.socket) -> bool:
    try:
        return bool(readable.recv(4096))
    except BlockingIOError:
        return False
