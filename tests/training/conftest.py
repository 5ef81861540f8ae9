"""Fixtures of the training tests: a tiny data set in CIFAR-10's shape, and a finished run on it."""

import gzip
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from app.network.mobilenet import mobilenet_v2
from tests.training.tiny import FASHION_HEADER, TINY, TINY_OPTIONS, lively_weights, make_images
from training.command_line import main
from training.data import cifar10
from training.data.unrelated import FASHION_MNIST
from training.evaluate import calibration, evaluate
from training.export import plots
from training.export.bundle import bundle_name, export
from training.fit import initial_weights
from training.fit.run_folder import FinishedRun


class TinyCIFAR10:
    """torchvision's CIFAR10, as far as training.data.cifar10 uses it."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        images = make_images(70, seed=1) if train else make_images(20, seed=2)
        self.data = images.images.numpy()
        self.targets = images.labels.tolist()


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bits depend on the number of threads, and commands under test may set another."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program under test reads the tiny data set, whatever its --data-dir."""
    _use_tiny_data(monkeypatch)


def _use_tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "CIFAR10", TinyCIFAR10)
    monkeypatch.setattr(cifar10, "HELD_OUT", 2)
    monkeypatch.setattr(evaluate, "UNRELATED_IMAGES", 12)
    monkeypatch.setattr(evaluate, "CORRUPTED_IMAGES", 2)
    monkeypatch.setattr(calibration, "RESAMPLES", 50)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`python -m training ...`, in this process."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return Answer(stop.value.code or 0, out, err)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run that was fitted and evaluated. Tests take a copy."""
    folder = tmp_path_factory.mktemp("finished")
    torch.set_num_threads(1)  # fixtures of a session come before those of a test
    with pytest.MonkeyPatch.context() as monkeypatch:
        _use_tiny_data(monkeypatch)
        monkeypatch.setattr(initial_weights, "mobilenet_v2", mobilenet_v2)  # a test module may have replaced it
        init = folder / "init.safetensors"
        init.write_bytes(lively_weights())
        # Not the repository's result, which is of other networks.
        places = ("--test-reads", str(folder / "test_reads.csv"), "--near", str(folder / "none.json"))
        for arguments in (("fit", *TINY_OPTIONS, "--init", str(init)), ("evaluate", *places)):
            monkeypatch.setattr(
                sys, "argv", ["training", *arguments, "--run-dir", str(folder / "run"), "--threads", "1"]
            )
            with pytest.raises(SystemExit) as stop:
                main()
            assert not stop.value.code
    yield folder / "run"


@pytest.fixture(scope="session")
def finished_bundle(finished_run: Path) -> Path:
    """The bundle of the finished run, in a folder "models". Tests must not change it."""
    bundle = finished_run.parent / "models" / bundle_name(TINY.architecture)
    with pytest.MonkeyPatch.context() as monkeypatch:
        _use_tiny_data(monkeypatch)
        export(FinishedRun.read(finished_run), cifar10.Dataset(finished_run, download=False), bundle, force=False)
    return bundle


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with noise in the format of Fashion-MNIST's test images; no pixel is black."""
    folder = tmp_path_factory.mktemp("fashion")
    pixels = np.random.default_rng(0).integers(1, 256, (10000, 28, 28), dtype=np.uint8)
    (folder / FASHION_MNIST).write_bytes(gzip.compress(FASHION_HEADER + pixels.tobytes(), 1))
    return folder


@pytest.fixture
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export without drawing, which takes most of its time."""
    for name in ("accuracy_and_loss", "confusion", "reliability", "risk_coverage", "robustness", "mistakes"):
        monkeypatch.setattr(plots, name, lambda *_: b"a picture")


@pytest.fixture
def run_dir(finished_run: Path, tmp_path: Path, tiny_data: None) -> Path:
    """A copy of the finished run for one test. Its files are links, which the program replaces as a whole."""
    shutil.copytree(finished_run, tmp_path / "run", copy_function=os.link)
    return tmp_path / "run"
