import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.cores import available_cores
from training import provenance
from training.provenance import continued, cpu_model, describe, environment, git_commit


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", root, *who, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "code.py").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one", "--no-verify")
    return tmp_path


def test_a_commit_is_dirty_when_its_code_was_changed(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD").strip()
    (repository / "docs.md").write_text("no code")
    assert git_commit(repository) == commit
    (repository / "app" / "code.py").write_text("2")
    assert git_commit(repository) == f"{commit}+dirty"


def test_outside_git_there_is_no_commit(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "below").mkdir()
    assert git_commit(repository / "below") is None  # installed into somebody else's repository
    empty = tmp_path_factory.mktemp("empty")
    git(empty, "init", "-q")
    assert git_commit(empty) is None
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert git_commit(repository) is None


def test_the_environment_is_json() -> None:
    found = json.loads(json.dumps(environment()))
    assert found["versions"]["python"] == platform.python_version()
    assert set(found["versions"]) == {"python", *provenance.PACKAGES}
    assert found["hardware"]["cores"] == available_cores() <= (os.cpu_count() or 1)
    assert found["hardware"]["cpu"]


def test_the_processor_s_name(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nmodel name\t: Some CPU @ 3 GHz\n")
    assert cpu_model(cpuinfo) == "Some CPU @ 3 GHz"
    cpuinfo.write_text("Hardware: none\n")
    assert cpu_model(cpuinfo) == cpu_model(tmp_path / "none") == platform.machine()


def place(threads: int, processes: int = 1) -> dict[str, Any]:
    hardware = {"cpu": "Some CPU", "cores": 2, "threads": threads, "processes": processes}
    return {"git_commit": "abc", "versions": {"torch": "2"}, "hardware": hardware}


def test_a_run_tells_where_it_went_on() -> None:
    run = continued({"config": 1}, place(1), 0, 0)
    assert run == {"config": 1, "environment": place(1), "continued": []}
    assert continued(run, place(1), 1, 5) == run  # in the same place
    moved = continued(run, place(2), 1, 5)
    assert moved == run | {"continued": [{"epoch": 1, "step": 5, **place(2)}]}
    assert continued(moved, place(2), 2, 0) == moved
    back = continued(moved, place(1, processes=3), 2, 0)
    assert [(one["epoch"], one["step"], one["hardware"]["processes"]) for one in back["continued"]] == [
        (1, 5, 1),
        (2, 0, 3),
    ]


def test_places_that_have_computed_nothing_that_is_left_are_forgotten() -> None:
    run = continued({}, place(1), 0, 0)
    assert continued(run, place(2), 0, 0) == {"environment": place(2), "continued": []}
    moved = continued(run, place(2), 1, 5)
    assert continued(moved, place(1), 1, 5) == run
    assert continued(moved, place(3), 1, 5) == run | {"continued": [{"epoch": 1, "step": 5, **place(3)}]}


def test_earlier_versions_knew_one_process_only() -> None:
    old = place(1)
    del old["hardware"]["processes"]
    assert continued({"environment": old}, place(1), 1, 0)["continued"] == []
    assert describe(old["hardware"]) == "Some CPU, 1 thread"
    assert describe(place(1, processes=2)["hardware"]) == "Some CPU, 2 processes, 1 thread each"
    assert describe(place(1, 8)["hardware"] | {"gpu": "Some GPU"}) == "Some GPU, 8 processes, 1 thread each"
