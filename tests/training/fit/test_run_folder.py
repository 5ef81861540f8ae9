import json
import os
from pathlib import Path

import pytest

from app.bundle.manifest import sha256
from tests.training.tiny import TINY, lively_weights, make_images
from training.data import cifar10 as data
from training.errors import TrainingError
from training.fit.run import RUN, STATE, WEIGHTS
from training.fit.run_folder import Outcome


def change(path: Path, content: bytes) -> None:
    """Replace, for the file is a link to one that other tests use."""
    path.unlink()
    path.write_bytes(content)


def test_a_finished_run_is_read_back(run_dir: Path) -> None:
    outcome = Outcome.read(run_dir)
    assert outcome.config == TINY
    assert outcome.initial_weights == f"sha256:{sha256(lively_weights())}"
    assert [row.epoch for row in outcome.history] == [1, 2]
    assert outcome.cpu_seconds > 0
    assert outcome.weights_sha256 == sha256((run_dir / WEIGHTS).read_bytes())
    assert outcome.environment["hardware"]["threads"] == 1
    assert not outcome.model().training


def test_its_data_are_found_again(run_dir: Path, tmp_path: Path) -> None:
    images, parts = Outcome.read(run_dir).data(tmp_path, download=False)
    assert images.take(parts.select).digest() == Outcome.read(run_dir).selection_data


def test_other_data_are_refused(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            images = make_images(70, seed=99)
            self.data, self.targets = images.images.numpy(), images.labels.tolist()

    monkeypatch.setattr(data, "CIFAR10", Other)
    with pytest.raises(TrainingError, match="holds other images than the run in"):
        Outcome.read(run_dir).data(tmp_path, download=False)


def test_no_run_and_half_a_run_are_told_apart(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no run: `python -m training fit` makes one"):
        Outcome.read(tmp_path / "nowhere")
    (run_dir / WEIGHTS).unlink()
    with pytest.raises(TrainingError, match=r"is not finished \(2 of 2 epochs\)"):
        Outcome.read(run_dir)
    (run_dir / STATE).unlink()
    with pytest.raises(TrainingError, match=r"is not finished \(0 of 2 epochs\): `python -m training fit`"):
        Outcome.read(run_dir)


@pytest.mark.parametrize("name", [RUN, STATE])
@pytest.mark.parametrize("content", [b"", b"{}", b"nothing of the kind"])
def test_a_damaged_run_is_one_line(run_dir: Path, name: str, content: bytes) -> None:
    change(run_dir / name, content)
    with pytest.raises(TrainingError, match="holds a damaged run") as error:
        Outcome.read(run_dir)
    assert "\n" not in str(error.value)


def test_damaged_weights_are_one_line(run_dir: Path) -> None:
    change(run_dir / WEIGHTS, b"nothing of the kind")
    with pytest.raises(TrainingError, match="weights.safetensors is damaged"):
        Outcome.read(run_dir).model()


def test_a_run_without_a_description_of_its_machine_gets_this_one(run_dir: Path) -> None:
    record = json.loads((run_dir / RUN).read_bytes())
    del record["environment"]
    change(run_dir / RUN, json.dumps(record).encode())
    assert Outcome.read(run_dir).environment["hardware"]["cores"] <= (os.cpu_count() or 1)
