"""Start, watch and stop all processes of a peer. Linux only: their state is read from /proc."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from tests.benchmarks.serving.peers.catalogue import ROOT, Peer

TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 20.0  # seconds for a peer to end after SIGTERM


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def running(peer: Peer, venvs: Path, log: IO[bytes]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a peer. Yields its process and its URL, and stops all of its processes at the end."""
    port, port1, port2 = free_ports(3)
    folder = (venvs / (peer.venv or peer.name) / "bin").absolute()
    names = {"python": folder / "python", "bin": folder, "port": port, "port1": port1, "port2": port2}
    # Without PYTHON* variables of the runner, which choose its packages, and without a proxy for 127.0.0.1.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    settings = {name: value.format(**names) for name, value in peer.environment.items()}
    process = subprocess.Popen(
        [part.format(**names) for part in peer.command],
        cwd=ROOT,
        env=inherited | {"PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"} | settings,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process, f"http://127.0.0.1:{port}{peer.path}"
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the first process, which stops its children; then SIGKILL, by id, to processes that are left."""
    family = started_at(process.pid)
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid, start in family.items():
        stat = read_stat(pid)
        if stat and stat[START] == start:  # still the same process, not a new one with its id
            os.kill(pid, signal.SIGKILL)


# Fields of /proc/PID/stat after the command's name, from 0: man 5 proc.
PARENT, USER_TIME, SYSTEM_TIME, START = 1, 11, 12, 19


def read_stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def stats(root: int) -> dict[int, list[str]]:
    """The fields of /proc/PID/stat for a process and all its descendants, by process id."""
    everything = {
        int(entry.name): read_stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()
    }
    found = {root: everything.get(root, [])}
    grown = True
    while grown:
        below = {
            pid: stat for pid, stat in everything.items() if stat and int(stat[PARENT]) in found and pid not in found
        }
        found |= below
        grown = bool(below)
    return {pid: stat for pid, stat in found.items() if stat}


def started_at(root: int) -> dict[int, str]:
    return {pid: stat[START] for pid, stat in stats(root).items()}


def cpu_seconds(root: int) -> float:
    return sum(int(stat[USER_TIME]) + int(stat[SYSTEM_TIME]) for stat in stats(root).values()) / TICKS


def wait_until_idle(root: int, limit: float = 3.0) -> None:
    """Wait until a peer has finished the requests that wrk left in its queues, at most `limit` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before = cpu_seconds(root)
        time.sleep(0.2)
        if cpu_seconds(root) - before <= 0.06:  # 30 % of a core; Ray is rarely below that, so it takes the whole limit
            return
