"""Logits once, every figure from what is saved.

A finished run's folder gets two more things:

    logits.safetensors  an Evaluation: logits, labels and scores by split, and whose weights they are of
    report.json, .txt   the report on the test split

The test images pass through `read_test_set` and nothing else, and it writes down that they did.
"""

import csv
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from app.network import Preprocessed
from app.novelty import Novelty
from app.report import Report, RobustnessReport
from training.abstention import abstention_report, aurocs, fit_novelty, threshold
from training.calibrate import calibration_report
from training.conformal import conformal_report
from training.data import LabelledImages, load
from training.far import far_images
from training.graph import build_graph, run_graph
from training.leave_out import read_near
from training.logits import Scored, Seen, predict_features
from training.metrics import build_report, report_text
from training.outcome import Outcome
from training.problems import TrainingError
from training.robustness import robustness_report
from training.selective import selective_report
from training.storage import write_atomically

LOGITS, REPORT, REPORT_TEXT = "logits.safetensors", "report.json", "report.txt"
SPLITS = ("select", "calibrate", "test")
READS_HEADER = ("date", "weights_sha256", "accuracy", "images")
FITTED_ON = 5000  # training images that scores for abstaining are fitted on
FAR_IMAGES, DAMAGED_IMAGES = 1000, 1000  # of each kind; of the test set
SEED = 0


@dataclass(frozen=True)
class Evaluation:
    """What a run's network made of the images that it is judged by.

    novelty: the score of unlikeness that was fitted; far: areas under the ROC curve by method and kind of image.
    """

    select: Scored
    calibrate: Scored
    test: Scored
    novelty: Novelty
    far: dict[str, dict[str, float]]
    robustness: RobustnessReport


def evaluate(
    outcome: Outcome, data_dir: Path, test_reads: Path, *, download: bool, near: Path, fashion_mnist: Path | None = None
) -> Report:
    """Evaluate a finished run, and write its report; what was computed already is not computed again.

    Raises TrainingError when the data are missing or others, or when a file cannot be written.
    """
    areas = read_near(near)
    evaluation = saved_evaluation(outcome)
    if evaluation is None:
        evaluation = _evaluate(outcome, data_dir, test_reads, download=download, fashion_mnist=fashion_mnist)
        _save(outcome, evaluation)
    report = report_of(evaluation, outcome, areas)
    write_atomically(outcome.folder / REPORT, render_report(report))
    write_atomically(outcome.folder / REPORT_TEXT, report_text(evaluation.test).encode())
    return report


def report_of(evaluation: Evaluation, outcome: Outcome, near: dict[str, list[float]]) -> Report:
    """All that report.json holds; `near` is what `training.leave_out` found."""
    calibrate, test = evaluation.calibrate, evaluation.test
    assert calibrate.ood_scores is not None and test.ood_scores is not None
    calibration = calibration_report(calibrate, test)
    temperature = calibration.temperature
    return build_report(test, outcome.history, calibration).model_copy(
        update={
            "conformal": conformal_report(calibrate, test, temperature),
            "selective": selective_report(test, temperature),
            "abstention": abstention_report(
                near, evaluation.far, test.ood_scores.numpy(), threshold(calibrate.ood_scores.numpy())
            ),
            "robustness": evaluation.robustness,
        }
    )


def _evaluate(
    outcome: Outcome, data_dir: Path, test_reads: Path, *, download: bool, fashion_mnist: Path | None
) -> Evaluation:
    images, parts = outcome.data(data_dir, download=download)
    model = outcome.model()
    lots = torch.randperm(len(parts.train), generator=torch.Generator().manual_seed(SEED))
    fitted_on = images.take(parts.train[lots[:FITTED_ON]])
    seen = predict_features(model, fitted_on.images)
    novelty = fit_novelty(seen)
    known = predict_features(model, images.images[parts.select])
    by_kind = {
        kind: aurocs(seen, fitted_on.labels.numpy(), known, predict_features(model, torch.from_numpy(other)))
        for kind, other in far_images(FAR_IMAGES, SEED, fashion_mnist).items()
    }
    calibrate = images.take(parts.calibrate)
    test = load(data_dir, train=False, download=False)
    return Evaluation(
        select=_scored(known, images.labels[parts.select], novelty),
        calibrate=_scored(predict_features(model, calibrate.images), calibrate.labels, novelty),
        test=read_test_set(model, novelty, test, test_reads, outcome.weights_sha256),
        novelty=novelty,
        far={name: {kind: areas[name] for kind, areas in by_kind.items()} for name in next(iter(by_kind.values()))},
        robustness=read_damaged_test_set(model, test, test_reads, outcome.weights_sha256),
    )


def read_test_set(
    model: Preprocessed, novelty: Novelty, test: LabelledImages, test_reads: Path, weights_sha256: str
) -> Scored:
    """What the network makes of the test images, and a line in `test_reads` that they were read.

    A log that cannot be written is found out before.
    """
    append_read(test_reads)
    scored = _scored(predict_features(model, test.images), test.labels, novelty)
    _log_read(test_reads, weights_sha256, scored.accuracy(), f"all {len(test.labels)}")
    return scored


def read_damaged_test_set(
    model: Preprocessed, test: LabelledImages, test_reads: Path, weights_sha256: str
) -> RobustnessReport:
    """Accuracy on damaged copies of some test images, and a line in `test_reads` that they were read."""
    append_read(test_reads)
    graph = build_graph(model).SerializeToString()
    report = robustness_report(
        lambda images: run_graph(graph, images),
        test.images.numpy(),
        test.labels.numpy(),
        n=min(DAMAGED_IMAGES, len(test.labels)),
        seed=SEED,
    )
    _log_read(test_reads, weights_sha256, report.mean_accuracy, f"{report.n} damaged")
    return report


def append_read(test_reads: Path, *rows: tuple[str, ...]) -> None:
    """Append rows; a new file gets its header. Raises TrainingError when the file cannot be written."""
    try:
        test_reads.parent.mkdir(parents=True, exist_ok=True)
        with test_reads.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(READS_HEADER)
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise TrainingError(
            f"cannot write --test-reads {test_reads} ({error.strerror}): name a file that can be written"
        ) from None


def saved_evaluation(outcome: Outcome) -> Evaluation | None:
    """What was saved, if it is of this outcome's very weights."""
    try:
        with safe_open(str(outcome.folder / LOGITS), framework="pt") as saved:
            about = saved.metadata() or {}
            if about.get("weights_sha256") != outcome.weights_sha256:
                return None
            scored = {name: Scored(*(saved.get_tensor(f"{name}.{part}") for part in Scored._fields)) for name in SPLITS}
            return Evaluation(
                **scored,
                novelty=Novelty(*(saved.get_tensor(f"novelty.{part}") for part in Novelty._fields)),
                far=json.loads(about["far"]),
                robustness=RobustnessReport.model_validate_json(about["robustness"]),
            )
    except (OSError, SafetensorError, KeyError, ValidationError):  # also: saved by an older version
        return None


def render_report(report: Report) -> bytes:
    return (report.model_dump_json(indent=2) + "\n").encode()


def _scored(seen: Seen, labels: Tensor, novelty: Novelty) -> Scored:
    return Scored(torch.from_numpy(seen.logits), labels, novelty.score(torch.from_numpy(seen.features)))


def _log_read(test_reads: Path, digest: str, accuracy: float, images: str) -> None:
    append_read(test_reads, (datetime.now(UTC).isoformat(timespec="seconds"), digest, f"{accuracy:.4f}", images))


def _save(outcome: Outcome, evaluation: Evaluation) -> None:
    tensors = {f"novelty.{part}": value for part, value in evaluation.novelty._asdict().items()}
    for name in SPLITS:
        scored: Scored = getattr(evaluation, name)
        tensors |= {f"{name}.{part}": value for part, value in scored._asdict().items()}
    about = {
        "weights_sha256": outcome.weights_sha256,
        "far": json.dumps(evaluation.far),
        "robustness": evaluation.robustness.model_dump_json(),
    }
    write_atomically(outcome.folder / LOGITS, save_safetensors(tensors, metadata=about))
