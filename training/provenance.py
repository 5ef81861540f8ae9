"""Where weights come from: the code, the versions of packages, and the machine."""

import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from app.cores import available_cores
from training.plural import plural

PACKAGES = ("torch", "torchvision", "onnxruntime", "numpy")
CODE = ("app", "training", "pyproject.toml")  # paths in the repository that decide the weights


def environment(processes: int = 1, device: torch.device | None = None) -> dict[str, Any]:
    """Commit, versions and hardware of this process, one of `processes`, as JSON."""
    hardware = {
        "cpu": cpu_model(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
    if device is not None and device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
    return {
        "git_commit": git_commit(Path(__file__).parent.parent),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "hardware": hardware,
    }


def _version(package: str) -> str | None:
    """None where it is not installed: training alone needs no ONNX Runtime."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def continued(record: Mapping[str, Any], environment: Mapping[str, Any], epoch: int, step: int) -> dict[str, Any]:
    """`record` of a run that resumes in `environment`, after the given epochs and steps.

    Its "environment" is the first one; "continued" lists later ones that differ, each with the epoch and step it took
    over at. Environments whose work was lost in a kill are removed.
    """
    if (epoch, step) == (0, 0):
        return {**record, "environment": environment, "continued": []}
    later = [one for one in record.get("continued", []) if (one["epoch"], one["step"]) < (epoch, step)]
    last = later[-1] if later else record.get("environment", {})
    if _comparable(environment) != _comparable(last):
        later.append({"epoch": epoch, "step": step, **environment})
    return {**record, "continued": later}


def describe(hardware: Mapping[str, Any]) -> str:
    """The processor or GPU, processes and threads, for people."""
    processes, threads = hardware.get("processes", 1), hardware["threads"]
    what = hardware.get("gpu", hardware["cpu"])
    shared = f"{processes} processes, {plural(threads, 'thread')} each" if processes > 1 else plural(threads, "thread")
    return f"{what}, {shared}"


def _comparable(environment: Mapping[str, Any]) -> dict[str, Any]:
    # Records of earlier versions lack "processes": there was always one.
    hardware = {"processes": 1} | environment.get("hardware", {})
    return {name: environment.get(name) for name in ("git_commit", "versions")} | {"hardware": hardware}


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
    except subprocess.CalledProcessError:  # no commit yet, or a repository of another user
        return None


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as Linux tells it, elsewhere its architecture."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
