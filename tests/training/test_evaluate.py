import csv
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from app.report import Report
from tests.training.tiny import make_images
from training import evaluate as evaluation
from training.evaluate import LOGITS, READS_HEADER, append_read, evaluate, read_test_set, saved_logits
from training.metrics import report_text
from training.outcome import Outcome
from training.problems import TrainingError


def reads(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "docs" / "test_reads.csv"


def test_logits_of_all_splits_are_saved_and_reported(run_dir: Path, tmp_path: Path, log: Path) -> None:
    (run_dir / LOGITS).unlink()
    outcome = Outcome.read(run_dir)
    report = evaluate(outcome, tmp_path, log, download=False)
    scored = saved_logits(outcome)
    assert scored is not None and {name: len(part.labels) for name, part in scored.items()} == {
        "select": 20,
        "calibrate": 20,
        "test": 20,
    }
    images, parts = outcome.data(tmp_path, download=False)
    with torch.inference_mode():
        expected = outcome.model()(images.images[parts.calibrate])
    torch.testing.assert_close(scored["calibrate"].logits, expected)
    assert torch.equal(scored["calibrate"].labels, images.labels[parts.calibrate])
    assert torch.equal(scored["test"].labels, make_images(20, seed=2).labels)
    assert report == Report.model_validate_json((run_dir / "report.json").read_bytes())
    assert report.history == list(outcome.history)
    assert report.accuracy.value == scored["test"].accuracy()
    assert (run_dir / "report.txt").read_text() == report_text(scored["test"])
    # The averaged weights, and the images, are what the last epoch was validated with.
    assert scored["select"].accuracy() == pytest.approx(outcome.history[-1].validation_accuracy)


def test_every_reading_is_a_line_and_saved_logits_are_no_reading(run_dir: Path, tmp_path: Path, log: Path) -> None:
    outcome = Outcome.read(run_dir)
    evaluate(outcome, tmp_path, log, download=False)
    assert not log.exists()
    for count in (1, 2):
        (run_dir / LOGITS).unlink()
        report = evaluate(outcome, tmp_path, log, download=False)
        assert len(reads(log)) == count
    last = reads(log)[-1]
    assert tuple(last) == READS_HEADER
    assert last["digest"] == outcome.weights_sha256
    assert float(last["accuracy"]) == pytest.approx(report.accuracy.value, abs=1e-4)
    assert abs(datetime.fromisoformat(last["date"]) - datetime.now(UTC)).total_seconds() < 60


def test_logits_of_other_weights_are_stale(run_dir: Path, tmp_path: Path, log: Path) -> None:
    outcome = Outcome.read(run_dir)
    state = load_file(run_dir / "weights.safetensors")
    state["classifier.1.bias"] += 100 * torch.eye(10)[3]
    other = replace(outcome, weights=save(state))
    assert saved_logits(other) is None
    report = evaluate(other, tmp_path, log, download=False)
    assert report.per_class[3].recall == 1
    assert saved_logits(other) is not None and saved_logits(outcome) is None


def test_damaged_logits_are_computed_again(run_dir: Path, tmp_path: Path, log: Path) -> None:
    (run_dir / LOGITS).unlink()
    (run_dir / LOGITS).write_bytes(b"nothing of the kind")
    evaluate(Outcome.read(run_dir), tmp_path, log, download=False)
    assert len(reads(log)) == 1


def test_nothing_is_read_when_the_log_cannot_be_written(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "load", lambda *_, **__: pytest.fail("the test images were read"))
    with pytest.raises(TrainingError, match=r"cannot write --test-reads .*name a file that can be written"):
        read_test_set(Outcome.read(run_dir).model(), tmp_path, tmp_path, "0" * 64)


def test_the_log_is_only_appended_to(log: Path) -> None:
    append_read(log)
    append_read(log, ("2026-01-01", "a" * 64, "0.9"))
    before = log.read_text()
    append_read(log)
    append_read(log, ("2026-01-02", "b" * 64, "0.8"))
    assert log.read_text() == before + f"2026-01-02,{'b' * 64},0.8\n"
    assert before.splitlines()[0] == ",".join(READS_HEADER)
