import csv
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from app.bundle.report import Report
from tests.training.tiny import TINY, make_images
from training.data.cifar10 import Dataset
from training.errors import TrainingError
from training.evaluate.abstention import METHODS, entropies
from training.evaluate.evaluate import (
    Sources,
    evaluate,
    read_corrupted_test_set,
    read_test_set,
    saved_evaluation,
)
from training.evaluate.human_labels import HumanLabels
from training.evaluate.leave_two_out import write_near
from training.evaluate.metrics import report_text
from training.evaluate.test_set_log import HEADER
from training.export.bundle import export
from training.fit.run_folder import LOGITS, FinishedRun


def dataset(folder: Path) -> Dataset:
    return Dataset(folder, download=False)


def score(
    run: FinishedRun,
    data_dir: Path,
    log: Path,
    near: str = "none.json",
    fashion: Path | None = None,
    labels: Path | None = None,
) -> Report:
    return evaluate(run, dataset(data_dir), log, Sources(data_dir / near, fashion, labels=labels))


def reads(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "docs" / "test_reads.csv"


def test_logits_of_all_splits_are_saved_and_reported(run_dir: Path, tmp_path: Path, log: Path) -> None:
    (run_dir / LOGITS).unlink()
    run = FinishedRun.read(run_dir)
    report = score(run, tmp_path, log)
    saved = saved_evaluation(run)
    assert saved is not None
    assert [len(part.labels) for part in (saved.select, saved.calibrate, saved.test)] == [20, 20, 20]
    images, parts = run.data(dataset(tmp_path))
    with torch.inference_mode():
        expected = run.model()(images.images[parts.calibrate])
    torch.testing.assert_close(saved.calibrate.logits, expected)
    assert torch.equal(saved.calibrate.labels, images.labels[parts.calibrate])
    assert torch.equal(saved.test.labels, make_images(20, seed=2).labels)
    assert report == Report.model_validate_json((run_dir / "report.json").read_bytes())
    assert report.history == list(run.history)
    assert report.accuracy.value == saved.test.accuracy()
    assert (run_dir / "report.txt").read_text() == report_text(saved.test)
    # The averaged weights, and the images, are what the last epoch was validated with.
    assert saved.select.accuracy() == pytest.approx(run.history[-1].validation_accuracy)


def test_every_reading_is_a_line_and_saved_evaluation_are_no_reading(run_dir: Path, tmp_path: Path, log: Path) -> None:
    run = FinishedRun.read(run_dir)
    score(run, tmp_path, log)
    assert not log.exists()
    for count in (2, 4):
        (run_dir / LOGITS).unlink()
        report = score(run, tmp_path, log)
        assert len(reads(log)) == count
    whole, damaged = reads(log)[-2:]
    assert report.robustness is not None
    for line, accuracy, images in (
        (whole, report.accuracy.value, "all 20"),
        (damaged, report.robustness.mean_accuracy, "2 damaged"),
    ):
        assert tuple(line) == HEADER
        assert (line["weights_sha256"], line["images"]) == (run.weights_sha256, images)
        assert float(line["accuracy"]) == pytest.approx(accuracy, abs=1e-4)
        assert abs(datetime.fromisoformat(line["date"]) - datetime.now(UTC)).total_seconds() < 60


def test_an_evaluation_that_was_stopped_goes_on_where_it_was(
    run_dir: Path, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run = FinishedRun.read(run_dir)
    before = score(run, tmp_path, log)
    (run_dir / LOGITS).unlink()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("training.evaluate.evaluate.robustness_report", stop)
        score(run, tmp_path, log)
    with pytest.raises(TrainingError, match="was not evaluated"):
        export(run, dataset(tmp_path), tmp_path / "bundle", force=False)
    assert score(run, tmp_path, log) == before
    assert [line["images"] for line in reads(log)] == ["all 20", "2 damaged"]


def test_logits_of_other_weights_are_stale(run_dir: Path, tmp_path: Path, log: Path) -> None:
    run = FinishedRun.read(run_dir)
    state = load_file(run_dir / "weights.safetensors")
    state["classifier.1.bias"] += 100 * torch.eye(10)[3]
    other = replace(run, weights=save(state))
    assert saved_evaluation(other) is None
    report = score(other, tmp_path, log)
    assert report.per_class[3].recall == 1
    assert saved_evaluation(other) is not None and saved_evaluation(run) is None


def test_damaged_logits_are_computed_again(run_dir: Path, tmp_path: Path, log: Path) -> None:
    (run_dir / LOGITS).unlink()
    (run_dir / LOGITS).write_bytes(b"nothing of the kind")
    score(FinishedRun.read(run_dir), tmp_path, log)
    assert len(reads(log)) == 2


def test_scores_of_the_report_are_of_the_saved_ones(run_dir: Path, tmp_path: Path, log: Path) -> None:
    run = FinishedRun.read(run_dir)
    report, saved = score(run, tmp_path, log), saved_evaluation(run)
    assert saved is not None and report.abstention is not None
    calibrate, test = (entropies(part.logits.numpy(), saved.temperature) for part in (saved.calibrate, saved.test))
    assert (calibrate <= report.abstention.threshold).mean() == pytest.approx(0.95)
    assert report.abstention.kept == pytest.approx((test <= report.abstention.threshold).mean())
    assert [one.method for one in report.abstention.methods] == list(METHODS)
    assert all(set(one.far) == {"noise", "textures"} and one.near == [] for one in report.abstention.methods)
    assert report.conformal is not None and [one.coverage for one in report.conformal.levels] == [0.95, 0.99, 0.995]
    assert report.selective is not None and report.selective.curve[-1].accuracy == pytest.approx(report.accuracy.value)


def test_what_leaving_two_out_found_goes_into_the_report(run_dir: Path, tmp_path: Path, log: Path) -> None:
    areas = {name: [0.9, 0.8, 0.7, 0.6, 0.5] for name in METHODS}
    write_near(tmp_path / "near.json", TINY, areas)
    report = score(FinishedRun.read(run_dir), tmp_path, log, "near.json")
    assert report.abstention is not None and len(report.abstention.near_pairs) == 5
    assert [one.near_mean for one in report.abstention.methods] == pytest.approx([0.7] * len(METHODS))
    (tmp_path / "near.json").write_text("{}")
    with pytest.raises(TrainingError, match="near.json is damaged"):
        score(FinishedRun.read(run_dir), tmp_path, log, "near.json")


def test_far_images_may_be_added_later_without_a_reading(
    run_dir: Path, tmp_path: Path, log: Path, fashion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FinishedRun.read(run_dir)
    before, after = score(run, tmp_path, log), score(run, tmp_path, log, fashion=fashion)
    assert before.abstention is not None and after.abstention is not None
    for one, other in zip(before.abstention.methods, after.abstention.methods, strict=True):
        assert set(other.far) == {"noise", "textures", "fashion_mnist"}
        assert {kind: other.far[kind] for kind in one.far} == pytest.approx(one.far)
    assert not log.exists()
    monkeypatch.setattr("training.evaluate.evaluate.unrelated_images", lambda *_: pytest.fail("computed again"))
    assert score(run, tmp_path, log, fashion=fashion) == score(run, tmp_path, log) == after
    with pytest.raises(TrainingError, match="cannot read .*name the folder that holds it"):
        monkeypatch.undo()
        Sources(tmp_path / "none.json", tmp_path).check()


def test_labels_of_other_people_may_be_added_later_and_stay(
    run_dir: Path, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def people(folder: Path, labels: np.ndarray, *, download: bool) -> HumanLabels:
        assert folder == tmp_path / "labels" and not download
        return HumanLabels(np.eye(10)[labels], np.arange(len(labels)) < 3, labels)

    monkeypatch.setattr("training.evaluate.evaluate.read_human_labels", people)
    run = FinishedRun.read(run_dir)
    assert score(run, tmp_path, log).labels is None
    report = score(run, tmp_path, log, labels=tmp_path / "labels")
    assert report.labels is not None and [one.n for one in report.labels] == [20, 20, 20, 17, 3, 20]
    assert report.labels[0].accuracy == report.accuracy
    assert score(run, tmp_path, log).labels == report.labels
    assert not log.exists()


def test_nothing_is_read_when_the_log_cannot_be_written(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unread:
        def logits(self, images: torch.Tensor) -> torch.Tensor:
            pytest.fail("the test images were read")

        outputs = logits

    monkeypatch.setattr(
        "training.evaluate.evaluate.robustness_report", lambda *_, **__: pytest.fail("the test images were read")
    )
    with pytest.raises(TrainingError, match=r"cannot write --test-reads .*name a file that can be written"):
        read_test_set(Unread(), make_images(20, seed=2), tmp_path, "0" * 64)
    with pytest.raises(TrainingError, match="cannot write --test-reads"):
        read_corrupted_test_set(FinishedRun.read(run_dir), make_images(20, seed=2), tmp_path)
