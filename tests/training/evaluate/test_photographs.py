"""What a run says of photographs, from a folder of them to the bundle."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.bundle.reader import Bundle
from app.inference.sessions import load_session
from app.settings import Settings
from tests.training.conftest import Answer
from training.data.photographs import OTHER
from training.evaluate import photographs
from training.evaluate.abstention import choose_temperature, entropies
from training.evaluate.network_outputs import Predictions
from training.evaluate.photographs import PhotographPredictions, fit_photographs, photograph_report, photograph_side

RANDOM = np.random.default_rng(0)


def predictions(count: int) -> Predictions:
    """Two thirds of the photographs are of five classes, and mostly right; the others have nearly equal logits."""
    labels = np.where(np.arange(count) % 3 < 2, np.arange(count) % 5, OTHER)
    logits = RANDOM.normal(size=(count, 10)) + np.where(labels[:, None] == np.arange(10), 3, 0)
    return Predictions(torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(labels))


FOUND = PhotographPredictions(predictions(900), predictions(1200), torch.zeros(100, 10))


def test_the_report_counts_photographs_of_the_classes_and_of_other_things() -> None:
    report = photograph_report(FOUND, 64)
    known = FOUND.report.labels != OTHER
    right = (FOUND.report.logits.argmax(1) == FOUND.report.labels)[known].float().mean().item()
    assert (report.side, report.n, report.others) == (64, 800, 400)
    assert report.accuracy.value == pytest.approx(right)
    assert [row.class_id for row in report.per_class] == [0, 1, 2, 3, 4]
    assert sum(row.support for row in report.per_class) == report.n
    assert report.macro_recall == pytest.approx(np.mean([row.recall.value for row in report.per_class]))
    assert report.calibration.fitted_on == report.conformal.fitted_on == 600


def test_what_is_fitted_on_one_half_holds_on_the_other() -> None:
    report, fitted = photograph_report(FOUND, 64), fit_photographs(FOUND, 64)
    for level in report.conformal.levels:
        low, high = level.expected_coverage
        assert low <= level.raw_coverage <= high
    abstention = report.abstention
    known = FOUND.report.labels != OTHER
    scores = entropies(FOUND.report.logits.numpy(), fitted.abstention.temperature)
    assert abstention.threshold == fitted.abstention.threshold
    assert abstention.kept.value == pytest.approx((scores[known.numpy()] <= abstention.threshold).mean())
    assert abstention.refused.value == pytest.approx((scores[~known.numpy()] > abstention.threshold).mean())
    assert abstention.kept.value == pytest.approx(0.95, abs=0.04) and abstention.auroc > 0.8
    calibrate = FOUND.calibrate
    assert fitted.abstention.temperature == choose_temperature(
        *(calibrate.logits[(calibrate.labels == OTHER) == other].numpy() for other in (False, True))
    )
    assert fitted.calibration.temperature == report.calibration.temperature
    assert sum(fitted.reference.predicted) == 600


@pytest.mark.parametrize(("enlarge", "side"), [(1, 32), (2, 64), (4, 64)])
def test_a_photograph_has_no_more_pixels_than_the_layers_of_the_network(enlarge: int, side: int) -> None:
    assert photograph_side(enlarge) == side


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty photographs of each of two kinds of cats, and of eighty other kinds."""
    for name in [f"cat/n0000000{kind}_{number}" for kind in (1, 2) for number in range(40)] + [
        f"other/kind{number}/picture" for number in range(80)
    ]:
        path = tmp_path / "photographs" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photographs"


def test_photographs_are_added_to_a_run_and_to_its_bundle_without_reading_the_test_set(
    run_dir: Path, tmp_path: Path, folder: Path, command: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photographs, "LEAST", 10)
    log, bundle = tmp_path / "reads.csv", tmp_path / "bundle"
    options = ("--data-dir", tmp_path, "--run-dir", run_dir)
    evaluated = command("evaluate", *options, "--near", "none.json", "--test-reads", log, "--photographs", folder)
    assert evaluated.code == 0, evaluated.err
    assert not log.exists()
    report = json.loads((run_dir / "report.json").read_bytes())
    assert report["photographs"]["side"] == 32 and report["photographs"]["n"] == 20
    exported = command("export", *options, "--bundle", bundle)
    assert exported.code == 0, exported.err
    manifest = Bundle.load(bundle).manifest
    assert manifest.photographs is not None
    assert (manifest.photographs.height, manifest.photographs.width) == (32, 32)
    assert "### Photographs" in (bundle / "README.md").read_text()
    for engine in ("onnx", "torch"):
        load_session(Settings(_env_file=None, model_dir=bundle, engine=engine))


def test_too_few_photographs_are_refused_in_one_line(
    run_dir: Path, tmp_path: Path, folder: Path, command: Callable[..., Answer]
) -> None:
    options = ("--data-dir", tmp_path, "--run-dir", run_dir, "--near", "none.json", "--test-reads", tmp_path / "reads")
    answer = command("evaluate", *options, "--photographs", folder)
    assert answer.code == 1
    assert "too few photographs" in answer.err and answer.err.count("\n") == 1
    answer = command("evaluate", *options, "--photographs", tmp_path / "nowhere")
    assert answer.code == 1 and "holds no photographs" in answer.err
