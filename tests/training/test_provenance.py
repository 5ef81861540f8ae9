import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from training import provenance
from training.provenance import cores, cpu_model, environment, git_commit


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
    assert found["hardware"]["cores"] == cores() <= (os.cpu_count() or 1)
    assert found["hardware"]["cpu"]


def test_the_processor_s_name(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nmodel name\t: Some CPU @ 3 GHz\n")
    assert cpu_model(cpuinfo) == "Some CPU @ 3 GHz"
    cpuinfo.write_text("Hardware: none\n")
    assert cpu_model(cpuinfo) == cpu_model(tmp_path / "none") == platform.machine()
