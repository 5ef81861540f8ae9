import math
from pathlib import Path

import pytest

from app.memory import available_memory, memory_limit

MEMINFO = "MemTotal:       2000 kB\nMemFree:         100 kB\nMemAvailable:   1000 kB\n"
V2 = {"memory.max": "800000\n", "memory.current": "500000\n", "memory.stat": "anon 1\ninactive_file 40000\n"}
V1 = {
    "memory/memory.limit_in_bytes": "800000\n",
    "memory/memory.usage_in_bytes": "500000\n",
    "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 40000\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1_024_000),
        (V2, 340_000),
        (V1, 340_000),
        (V2 | {"memory.max": "max\n"}, 1_024_000),
        (V2 | {"memory.max": "9000000\n"}, 1_024_000),
        (V2 | {"memory.current": "900000\n"}, 0),
        (V2 | {"memory.stat": ""}, 300_000),
    ],
)
def test_the_smaller_of_the_machines_and_the_cgroups_counts(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    (tmp_path / "memory").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(MEMINFO)
    assert available_memory(tmp_path, meminfo) == expected


def test_where_nothing_is_known_nothing_limits(tmp_path: Path) -> None:
    assert available_memory(tmp_path, tmp_path / "meminfo") == math.inf
    assert available_memory() > 0


@pytest.mark.parametrize(
    ("files", "expected"), [(V2, 800_000), (V1, 800_000), ({}, math.inf), ({"memory.max": "max\n"}, math.inf)]
)
def test_the_limit_is_the_cgroups(tmp_path: Path, files: dict[str, str], expected: float) -> None:
    (tmp_path / "memory").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert memory_limit(tmp_path) == expected
