"""Logits once, every figure from what is saved.

A finished run's folder gets two more things:

    logits.safetensors  an Evaluation: logits, labels and scores by split, and whose weights they are of
    report.json, .txt   the report on the test split

The test images pass through the network in `read_test_set` and, damaged, in `read_damaged_test_set`, and nowhere else;
both write down that they did.
"""

import csv
import json
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from app.bundle.report import Report, RobustnessReport
from app.network.mobilenet import Preprocessed
from app.network.novelty import Novelty
from app.network.served import ServedNetwork
from training.atomic_files import write_atomically
from training.data.cifar10 import LabelledImages, Split, load
from training.data.unrelated import far_images
from training.errors import TrainingError
from training.evaluate.abstention import (
    METHODS,
    SERVED,
    abstention_report,
    aurocs,
    fit_all,
    fit_novelty,
    threshold,
)
from training.evaluate.calibration import calibration_report
from training.evaluate.conformal import conformal_report
from training.evaluate.leave_two_out import read_near
from training.evaluate.metrics import build_report, report_text
from training.evaluate.network_outputs import Scored, Seen, predict_features
from training.evaluate.robustness import robustness_report
from training.evaluate.selective import selective_report
from training.export.graph import build_graph, run_graph
from training.fit.run_folder import Outcome

LOGITS, REPORT, REPORT_TEXT = "logits.safetensors", "report.json", "report.txt"
SPLITS = ("select", "calibrate", "test")
READS_HEADER = ("date", "weights_sha256", "accuracy", "images")
FITTED_ON = 5000  # training images that scores for abstaining are fitted on
FAR_IMAGES, DAMAGED_IMAGES = 1000, 1000  # of each kind; of the test set
SEED = 0
ROBUSTNESS = TypeAdapter(RobustnessReport | None)


@dataclass(frozen=True)
class Evaluation:
    """What a run's network made of the images that it is judged by.

    novelty: the score of unlikeness that was fitted; far: areas under the ROC curve by method and kind of image;
    near: the same by method and left out pair, from leave_two_out, or empty. robustness: what takes
    longest, and None until that is done.
    """

    select: Scored
    calibrate: Scored
    test: Scored
    novelty: Novelty
    far: dict[str, dict[str, float]]
    near: dict[str, list[float]]
    robustness: RobustnessReport | None


def evaluate(
    outcome: Outcome, data_dir: Path, test_reads: Path, *, download: bool, near: Path, fashion_mnist: Path | None = None
) -> Report:
    """Evaluate a finished run, and write its report; what was computed already is not computed again.

    `near` is the file of leave_two_out; `fashion_mnist` a folder, see training.data.unrelated. Both may be added
    later, at no reading of the test set. Raises TrainingError when the data are missing or others, or when a file
    cannot be written.
    """
    areas = read_near(near)
    evaluation = saved_evaluation(outcome)
    if evaluation is None:
        evaluation = _evaluate(outcome, data_dir, test_reads, download=download, fashion_mnist=fashion_mnist)
        _save(outcome, evaluation)
    elif fashion_mnist is not None and "fashion_mnist" not in evaluation.far[SERVED]:
        images, parts = outcome.data(data_dir, download=download)
        model = outcome.model()
        evaluation = replace(evaluation, far=_far(model, _usual(model, images, parts), fashion_mnist))
    if evaluation.robustness is None:
        test = load(data_dir, train=False, download=False)
        damaged = read_damaged_test_set(outcome.model(), test, test_reads, outcome.weights_sha256)
        evaluation = replace(evaluation, robustness=damaged)
    evaluation = replace(evaluation, near=areas)
    _save(outcome, evaluation)
    report = report_of(evaluation, outcome)
    write_atomically(outcome.folder / REPORT, render_report(report))
    write_atomically(outcome.folder / REPORT_TEXT, report_text(evaluation.test).encode())
    return report


def check_sources(near: Path, fashion_mnist: Path | None) -> None:
    """Raises TrainingError unless `evaluate` can read these, so that it is known before hours of training."""
    read_near(near)
    if fashion_mnist is not None:
        far_images(1, SEED, fashion_mnist)


def report_of(evaluation: Evaluation, outcome: Outcome) -> Report:
    """All that report.json holds."""
    calibrate, test = evaluation.calibrate, evaluation.test
    assert calibrate.ood_scores is not None and test.ood_scores is not None
    calibration = calibration_report(calibrate, test)
    temperature = calibration.temperature
    return build_report(test, outcome.history, calibration).model_copy(
        update={
            "conformal": conformal_report(calibrate, test, temperature),
            "selective": selective_report(test, temperature),
            "abstention": abstention_report(
                evaluation.near, evaluation.far, test.ood_scores.numpy(), threshold(calibrate.ood_scores.numpy())
            ),
            "robustness": evaluation.robustness,
        }
    )


def _evaluate(
    outcome: Outcome, data_dir: Path, test_reads: Path, *, download: bool, fashion_mnist: Path | None
) -> Evaluation:
    images, parts = outcome.data(data_dir, download=download)
    model = outcome.model()
    usual = _usual(model, images, parts)
    novelty = fit_novelty(usual.bank)
    far = _far(model, usual, fashion_mnist)
    calibrate = images.take(parts.calibrate)
    test = load(data_dir, train=False, download=False)
    return Evaluation(
        select=_scored(usual.select, images.labels[parts.select], novelty),
        calibrate=_scored(predict_features(model, calibrate.images), calibrate.labels, novelty),
        test=read_test_set(model, novelty, test, test_reads, outcome.weights_sha256),
        novelty=novelty,
        far=far,
        near={},
        robustness=None,
    )


class _Usual(NamedTuple):
    """What the network makes of images of the kind that it knows: some that it was trained on, and the selection split.

    bank_labels: int64 [N].
    """

    bank: Seen
    bank_labels: npt.NDArray[np.int64]
    select: Seen


def _usual(model: Preprocessed, images: LabelledImages, parts: Split) -> _Usual:
    lots = torch.randperm(len(parts.train), generator=torch.Generator().manual_seed(SEED))
    bank = images.take(parts.train[lots[:FITTED_ON]])
    return _Usual(
        predict_features(model, bank.images),
        bank.labels.numpy(),
        predict_features(model, images.images[parts.select]),
    )


def _far(model: Preprocessed, usual: _Usual, fashion_mnist: Path | None) -> dict[str, dict[str, float]]:
    """Areas under the ROC curve by method and kind of image."""
    detectors = fit_all(usual.bank, usual.bank_labels)
    by_kind = {
        kind: aurocs(detectors, usual.select, predict_features(model, torch.from_numpy(other)))
        for kind, other in far_images(FAR_IMAGES, SEED, fashion_mnist).items()
    }
    return {name: {kind: areas[name] for kind, areas in by_kind.items()} for name in METHODS}


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
    graph = build_graph(ServedNetwork(model)).SerializeToString()
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
                near=json.loads(about["near"]),
                robustness=ROBUSTNESS.validate_json(about["robustness"]),
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
        "near": json.dumps(evaluation.near),
        "robustness": ROBUSTNESS.dump_json(evaluation.robustness).decode(),
    }
    write_atomically(outcome.folder / LOGITS, save_safetensors(tensors, metadata=about))
