"""Memory that this process may take. Standard library only."""

import math
import re
from pathlib import Path


def available_memory(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> float:
    """Bytes: what the machine has left, or less where the cgroup's limit leaves less; infinite where neither is known.

    Files that the kernel keeps in memory and has not used lately count as free.
    """
    machine = re.search(r"^MemAvailable: +(\d+) kB", _text(meminfo), re.MULTILINE)
    return min(int(machine[1]) * 1024 if machine else math.inf, _left_in(cgroup))


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that the limit of cgroup v2 or v1 allows; infinite where neither limits."""
    for limit in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        if (most := _text(limit).strip()).isdecimal():
            return int(most)
    return math.inf


def _left_in(cgroup: Path) -> float:
    """What a limit of cgroup v2 or v1 leaves; infinite where neither limits."""
    for folder, limit, used, cache in (
        (cgroup, "memory.max", "memory.current", "inactive_file"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, taken = _text(folder / limit).strip(), _text(folder / used).strip()
        if most.isdecimal() and taken.isdecimal():
            idle = re.search(rf"^{cache} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
            return max(0, int(most) - int(taken) + (int(idle[1]) if idle else 0))
    return math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
