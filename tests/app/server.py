"""A real server in a process of its own, for tests of what only a process has: signals, exit codes, sockets."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

from tests.conftest import ROOT

READY_SECONDS = 60
SERVE = (sys.executable, "-m", "app", "serve")
LISTENING = "0A"  # in /proc/net/tcp


@contextmanager
def serve(
    *,
    command: Sequence[str] = SERVE,
    folder: Path = ROOT,
    stderr: int | IO[bytes] = subprocess.PIPE,
    descriptors: int | None = None,
    **environment: object,
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`python -m app serve` on a free port, or at the Unix socket UDS. Yields it and a client of it.

    It is killed if it still runs at the end. It runs in `folder` and may hold at most `descriptors` open.
    """
    limited = [] if descriptors is None else ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh"]
    settings = {"PORT": 0, "INFERENCE_THREADS": 1, "GRACE_SECONDS": 0, **environment}
    process = subprocess.Popen(
        [*limited, *command],
        cwd=folder,
        env=os.environ | {name: str(value) for name, value in settings.items()},
        stderr=stderr,
        text=True,
    )
    try:
        if path := environment.get("UDS"):
            _wait_for(str(path), process)
            address, transport = "http://service", httpx.HTTPTransport(uds=str(path))
        else:
            address, transport = f"http://127.0.0.1:{_port(process)}", httpx.HTTPTransport()
        with httpx.Client(base_url=address, transport=transport, timeout=30) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def run(*arguments: str, **environment: object) -> subprocess.CompletedProcess[str]:
    """`python -m app ...` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
    )


def _wait_for(path: str, process: subprocess.Popen[str]) -> None:
    """Until the Unix socket takes connections: the first client waits for the rest of the start."""
    while process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                return
        time.sleep(0.01)
    raise AssertionError("the server did not start:\n" + (process.stderr.read() if process.stderr else ""))


def _port(process: subprocess.Popen[str]) -> int:
    """The port on which it listens, as Linux says: what is logged depends on the settings."""
    descriptors = f"/proc/{process.pid}/fd"
    while process.poll() is None:
        try:
            held = {os.readlink(f"{descriptors}/{name}") for name in os.listdir(descriptors)}
        except OSError:
            continue  # one was closed meanwhile, or the process has ended
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, address, _, state, *_, inode = line.split()[:10]
            if state == LISTENING and f"socket:[{inode}]" in held:
                return int(address.split(":")[1], 16)
        time.sleep(0.05)  # each look costs a millisecond
    raise AssertionError("the server did not start:\n" + (process.stderr.read() if process.stderr else ""))
