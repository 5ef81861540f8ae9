"""Where weights come from: the code, the versions and the machine."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "onnxruntime", "numpy")
CODE = ("app", "training", "pyproject.toml")  # what decides the weights, below the repository's root


def environment() -> dict[str, Any]:
    """Commit, versions and hardware of this process, as JSON."""
    return {
        "git_commit": git_commit(Path(__file__).parent.parent),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "hardware": {"cpu": cpu_model(), "cores": cores(), "threads": torch.get_num_threads()},
    }


def git_commit(root: Path) -> str | None:
    """The commit of the repository in `root`, with "+dirty" when the code in it differs; None outside git."""
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None

    def ask(*arguments: str) -> str:
        command = [git, "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 (no shell)

    try:
        return ask("rev-parse", "HEAD") + ("+dirty" if ask("status", "--porcelain", "--", *CODE) else "")
    except subprocess.CalledProcessError:  # no commit yet, or a repository of somebody else
        return None


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as Linux tells it, elsewhere its architecture."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
