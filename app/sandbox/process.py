"""A process that works on untrusted input. The service kills it if a request takes too much time or memory.

    process = SandboxedProcess("app.imaging.worker", 400 << 20, 2.0, silence_seconds=20.0)     # OSError
    process.send(header, content)
    content = process.answer(THUMBNAILS, most=3072, problems=(UndecodableImage,))
    process.end()

It is a fresh interpreter that runs one module, whose main part calls app.sandbox.worker.serve. It inherits one socket
and no secrets. One thread at a time may use it; any thread may call `end`.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

from .channel import MOST_READY, READY
from .conversation import Conversation, ProcessEnded, reason_of

START_SECONDS = 30.0  # for importing libraries on a busy machine
GONE_SECONDS = 1.0  # the socket closes a moment before the process is gone
LARGE_BLOCK_BYTES = 1 << 20
KEPT_BYTES = 8 << 20  # free memory that a process keeps for its next request: asking for it anew costs 5 % of a photo
KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME")


class SandboxedProcess(Conversation):
    """silence_seconds: after this time without an answer the process is killed."""

    def __init__(self, module: str, *arguments: object, silence_seconds: float) -> None:
        """Raises OSError if the process cannot be started, and ProcessEnded if it is killed while it starts."""
        self._process, channel = spawn(module, *arguments)
        super().__init__(channel)
        try:
            self._channel.settimeout(START_SECONDS)
            restrictions = self.answer(READY, most=MOST_READY).decode()
        except (ProcessEnded, ValueError) as error:
            self.end()
            if isinstance(error, ProcessEnded) and error.reason == "killed":
                raise
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

    def failed(self, error: Exception) -> ProcessEnded:
        """The reason why it ended. Kills a process that still runs but is silent or sends invalid answers."""
        if isinstance(error, TimeoutError):
            self.end()
            return ProcessEnded("time")
        try:
            status = self._process.wait(GONE_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        self.end()
        return ProcessEnded(reason_of(status) if status is not None else "crash")

    def end(self) -> None:
        """Kill the process. Any thread may call this; a thread that waits for an answer gets ProcessEnded."""
        self._process.kill()
        self._process.wait()
        self._channel.close()


def spawn(module: str, *arguments: object) -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """Start a fresh interpreter that runs the module. Returns it, and our end of the socket that is its standard input.

    It says READY when it has started. Raises OSError.
    """
    channel, theirs = socket.socketpair()
    try:
        with theirs:
            process = subprocess.Popen(  # noqa: S603 (no shell, no input in the command)
                [sys.executable, "-P", "-m", module, *map(str, arguments)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                process_group=0,  # it must not get signals sent to the service's group
            )
    except BaseException:
        channel.close()
        raise
    return process, channel


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
