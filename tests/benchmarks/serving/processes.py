"""Memory, descriptors and children of a process, from /proc (Linux)."""

import os
from contextlib import suppress
from pathlib import Path


def resident_mb(pid: int) -> float:
    """The resident memory now, in MB of 2^20 bytes."""
    return _status(pid, "VmRSS")


def proportional_mb(pid: int) -> float:
    """The resident memory now, in MB of 2^20 bytes; a page that n processes share counts as an n-th of a page."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has ended")


def peak_mb(pid: int) -> float:
    """The peak of resident memory since the start or since `forget_peak`, in MB of 2^20 bytes."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def decodes(pid: int) -> bool:
    """Whether it is a decoding process; one that has ended is none."""
    with suppress(OSError):
        return b"app.imaging.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def workers(supervisor: int) -> list[int]:
    """Its children that serve; its others decode for all of them."""
    return [pid for pid in children(supervisor) if not decodes(pid)]


def _status(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has no {field}")
