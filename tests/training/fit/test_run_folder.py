import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load, save

from app.bundle.manifest import sha256
from tests.training.tiny import TINY, lively_weights, make_images
from training.data import cifar10
from training.errors import TrainingError
from training.fit.run_folder import RUN, STATE, WEIGHTS, FinishedRun


def change(path: Path, content: bytes) -> None:
    """Replace the file: it is a link to one that other tests use."""
    path.unlink()
    path.write_bytes(content)


def test_a_finished_run_is_read_back(run_dir: Path) -> None:
    run = FinishedRun.read(run_dir)
    assert run.config == TINY
    assert run.initial_weights == f"sha256:{sha256(lively_weights())}"
    assert [row.epoch for row in run.history] == [1, 2]
    assert run.cpu_seconds > 0
    assert run.weights_sha256 == sha256((run_dir / WEIGHTS).read_bytes())
    assert run.environment["hardware"]["threads"] == 1
    assert not run.model().training


def test_a_finished_run_finds_its_data_again(run_dir: Path, tmp_path: Path) -> None:
    images, parts = FinishedRun.read(run_dir).data(cifar10.Dataset(tmp_path, download=False))
    assert images.take(parts.select).digest() == FinishedRun.read(run_dir).selection_data


def test_data_that_are_not_the_run_s_are_refused(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            images = make_images(70, seed=99)
            self.data, self.targets = images.images.numpy(), images.labels.tolist()

    monkeypatch.setattr(cifar10, "CIFAR10", Other)
    with pytest.raises(TrainingError, match="holds other images than the run in"):
        FinishedRun.read(run_dir).data(cifar10.Dataset(tmp_path, download=False))


def test_no_run_and_half_a_run_are_told_apart(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no run: `python -m training fit` makes one"):
        FinishedRun.read(tmp_path / "nowhere")
    (run_dir / WEIGHTS).unlink()
    with pytest.raises(TrainingError, match=r"is not finished \(2 of 2 epochs\)"):
        FinishedRun.read(run_dir)
    (run_dir / STATE).unlink()
    with pytest.raises(TrainingError, match=r"is not finished \(0 of 2 epochs\): `python -m training fit`"):
        FinishedRun.read(run_dir)


@pytest.mark.parametrize("name", [RUN, STATE])
@pytest.mark.parametrize("content", [b"", b"{}", b"nothing of the kind"])
def test_a_damaged_run_is_one_line(run_dir: Path, name: str, content: bytes) -> None:
    change(run_dir / name, content)
    with pytest.raises(TrainingError, match="holds a damaged run") as error:
        FinishedRun.read(run_dir)
    assert "\n" not in str(error.value)


def test_damaged_weights_are_one_line(run_dir: Path) -> None:
    change(run_dir / WEIGHTS, b"nothing of the kind")
    with pytest.raises(TrainingError, match="weights.safetensors is damaged"):
        FinishedRun.read(run_dir).model()


def test_weights_that_are_no_numbers_are_one_line(run_dir: Path) -> None:
    weights = load(run_dir.joinpath(WEIGHTS).read_bytes())
    weights["classifier.1.bias"][3] = float("nan")
    change(run_dir / WEIGHTS, save(weights))
    with pytest.raises(TrainingError, match=r"weights\.safetensors: not all weights are finite"):
        FinishedRun.read(run_dir).model()


def test_a_run_without_a_description_of_its_machine_gets_this_one(run_dir: Path) -> None:
    record = json.loads((run_dir / RUN).read_bytes())
    del record["environment"]
    change(run_dir / RUN, json.dumps(record).encode())
    assert FinishedRun.read(run_dir).environment["hardware"]["cores"] <= (os.cpu_count() or 1)
