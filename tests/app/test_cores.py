from pathlib import Path

import pytest

from app.cores import available_cores


def cgroup_v2(folder: Path, content: str) -> Path:
    (folder / "cpu.max").write_text(content)
    return folder


@pytest.mark.parametrize(
    ("content", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("250000 100000", 2), ("max 100000", 4)]
)
def test_cores_are_the_smaller_of_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(4)))
    assert available_cores(cgroup_v2(tmp_path, content)) == cores


def test_cores_under_cgroup_v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(4)))
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("300000\n")
    assert available_cores(tmp_path) == 3
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert available_cores(tmp_path) == 4


def test_cores_without_a_cgroup_or_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1
