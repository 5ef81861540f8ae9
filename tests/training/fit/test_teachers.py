from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import make_images
from training.errors import TrainingError
from training.export.graph import run_graph
from training.fit.teachers import read_teacher


def test_a_teacher_is_a_bundle_or_a_finished_run(finished_bundle: Path, run_dir: Path) -> None:
    assert read_teacher(finished_bundle, 0) == (finished_bundle / "model.onnx").read_bytes()
    images = make_images(4, seed=3).images.numpy()
    of_run, of_bundle = (run_graph(read_teacher(folder, 0), images) for folder in (run_dir, finished_bundle))
    assert np.array_equal(of_run, of_bundle)  # the bundle's graph scores novelty, too


def test_what_is_neither_is_refused(tmp_path: Path, run_dir: Path) -> None:
    with pytest.raises(TrainingError, match="--teacher: cannot read"):
        read_teacher(tmp_path, 0)
    (run_dir / "weights.safetensors").unlink()
    with pytest.raises(TrainingError, match="is not finished"):
        read_teacher(run_dir, 0)


def test_one_of_another_split_is_refused(finished_bundle: Path, run_dir: Path) -> None:
    for folder in (finished_bundle, run_dir):
        with pytest.raises(TrainingError, match=r"--teacher .* was trained with --split-seed 0, not 1: it has seen"):
            read_teacher(folder, 1)
