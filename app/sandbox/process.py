"""A process that works on untrusted input. The service kills it if a request takes too much time or memory.

    process = SandboxedProcess("app.imaging.worker", 400 << 20, 2.0, silence_seconds=20.0)     # OSError
    process.send(header, content)
    content = process.answer(THUMBNAILS, most=3072, problems=(UndecodableImage,))
    process.end()

It is a fresh interpreter that runs one module, whose main part calls app.sandbox.worker.serve. It inherits one socket
and no secrets. One thread at a time may use it; any thread may call `end`.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import Problem
from .channel import ANSWER, LONGEST_PROBLEM, OUT_OF_MEMORY, PROBLEM, READY, receive

START_SECONDS = 30.0  # for importing libraries on a busy machine
LARGE_BLOCK_BYTES = 1 << 20
KEPT_BYTES = 8 << 20  # free memory that a process keeps for its next request: asking for it anew costs 5 % of a photo
KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME")
# "killed": by something else, as Linux does when the machine or the container runs out of memory.
REASONS = ("cpu", "memory", "time", "crash", "killed")


class ProcessEnded(Exception):
    """The process has ended while it had a request; `reason` is one of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def exceeded(self) -> str | None:
        """What the request took more of than is allowed; None if it was something else."""
        return {"cpu": "processor time", "memory": "memory", "time": "time"}.get(self.reason)


class SandboxedProcess:
    """silence_seconds: after this time without an answer the process is killed."""

    def __init__(self, module: str, *arguments: object, silence_seconds: float) -> None:
        """Raises OSError if the process cannot be started."""
        self._channel, theirs = socket.socketpair()
        try:
            with theirs:
                self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 (no shell, no input in the command)
                    [sys.executable, "-P", "-m", module, *map(str, arguments)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                    process_group=0,  # it must not get signals sent to the service's group
                )
        except BaseException:
            self._channel.close()
            raise
        try:
            self._channel.settimeout(START_SECONDS)
            restrictions = self.answer(READY, most=100).decode()
        except (ProcessEnded, ValueError):
            self.end()
            raise OSError(f"{module} does not start") from None
        self.restrictions = frozenset(restrictions.split(",")) - {""}
        self._channel.settimeout(silence_seconds)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs. A system that is short of memory may have killed it while it was idle."""
        return self._process.poll() is None

    def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Raises ProcessEnded."""
        try:
            for part in parts:
                self._channel.sendall(part)
        except OSError as error:
            raise self.failed(error) from None

    def answer(self, kind: int, *, most: int, problems: Iterable[type[Problem]] = ()) -> bytes:
        """The content of the answer, which is of this kind and has at most `most` bytes.

        Raises one of `problems` if the process answers with it, and ProcessEnded if it answers with anything else.
        """
        try:
            given, size = ANSWER.unpack(receive(self._channel, ANSWER.size))
            if given not in (PROBLEM, kind) or size > (LONGEST_PROBLEM if given == PROBLEM else most):
                raise ValueError("a sandboxed process answers with something else")
            content = receive(self._channel, size)
            if given == PROBLEM:
                code, detail = json.loads(content)
                problem = {kind.code: kind for kind in problems}[code](str(detail))
        except (OSError, EOFError, ValueError, KeyError, TypeError, struct.error) as error:
            raise self.failed(error) from None
        if given == PROBLEM:
            raise problem
        return content

    def failed(self, error: Exception) -> ProcessEnded:
        """The reason why it ended. Kills a process that still runs but is silent or sends invalid answers."""
        if isinstance(error, TimeoutError):
            self.end()
            return ProcessEnded("time")
        try:
            status = self._process.wait(1.0)  # the socket closes a moment before the process is gone
        except subprocess.TimeoutExpired:
            status = None
        self.end()
        reasons = {-signal.SIGPROF: "cpu", OUT_OF_MEMORY: "memory", -signal.SIGKILL: "killed"}
        return ProcessEnded(reasons.get(status, "crash") if status is not None else "crash")

    def end(self) -> None:
        """Kill the process. Any thread may call this; a thread that waits for an answer gets ProcessEnded."""
        self._process.kill()
        self._process.wait()
        self._channel.close()


def _environment() -> dict[str, str]:
    """The environment of the process: no secrets, no settings, one thread for NumPy's libraries.

    glibc returns large blocks to the system as soon as they are free, so that an idle process keeps no large picture,
    and keeps KEPT_BYTES of others.
    """
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    folder = str(Path(__file__).parents[len(__package__.split("."))])
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    memory = {"MALLOC_MMAP_THRESHOLD_": str(LARGE_BLOCK_BYTES), "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES)}
    return kept | threads | memory | {"PYTHONPATH": folder}
