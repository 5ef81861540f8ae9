"""Compute a finished run's outputs once, and its report from them.

The run's folder gets logits.safetensors, an Evaluation, and the report. The test images pass through the network in
`read_test_set` and, corrupted, in `read_corrupted_test_set`, and nowhere else; both log that they did.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from app.bundle.report import LabelAccuracy, Report, RobustnessReport
from app.network.served import ServedNetwork
from training.atomic_files import write_atomically
from training.data.cifar10 import LabelledImages, Split
from training.data.data_set import DataSet
from training.data.photographs import read_photographs
from training.data.unrelated import unrelated_images
from training.errors import TrainingError
from training.evaluate.abstention import (
    METHODS,
    SERVED,
    TEMPERATURE,
    abstention_report,
    aurocs,
    entropies,
    fit_all,
    threshold,
)
from training.evaluate.calibration import calibration_report
from training.evaluate.conformal import LEVELS, conformal_report, possible_levels
from training.evaluate.human_labels import figures, read_human_labels
from training.evaluate.leave_two_out import read_near
from training.evaluate.metrics import build_report, report_text
from training.evaluate.network_outputs import Answering, Outputs, Predictions, answering
from training.evaluate.photographs import (
    PhotographPredictions,
    photograph_report,
    photograph_side,
    predict_photographs,
)
from training.evaluate.robustness import robustness_report
from training.evaluate.selective import selective_report
from training.evaluate.test_set_log import check_log, log_read
from training.export.graph import build_graph, run_graph, takes_any_size
from training.fit.run_folder import LOGITS, REPORT, REPORT_TEXT, FinishedRun

SPLITS = ("select", "calibrate", "test")
HALVES = ("calibrate", "report")
OTHERS_AS_THUMBNAILS = "photographs.others_as_thumbnails"
FITTED_ON = 5000  # training images that out-of-distribution scores are fitted on
UNRELATED_IMAGES = 1000  # of each kind
CORRUPTED_IMAGES = 1000  # of the test set
OWN_CORRUPTED_IMAGES = 200  # of a user's own: each has 75 variants, which should not take longer than the training
MOST_INDENTED = 100  # classes of a report with a line for each number; a thousand have a million numbers
SEED = 0
ROBUSTNESS = TypeAdapter(RobustnessReport | None)
LABELS = TypeAdapter(list[LabelAccuracy] | None)


@dataclass(frozen=True)
class Evaluation:
    """A network's outputs for the images that it is judged by.

    temperature: of the served entropy, for thumbnails; where photographs were given it was chosen on those of other
    things. far: areas under the ROC curve by method and kind of unrelated image. near: the same by method and pair of
    left out classes, from leave_two_out, or empty. robustness: takes longest, and is None until it is computed.
    photographs and labels: None if none were given. others: float32 logits [N, classes] of pictures of other things,
    None if there are none. measured_on: see the function.
    """

    select: Predictions
    calibrate: Predictions
    test: Predictions
    temperature: float
    far: dict[str, dict[str, float]]
    near: dict[str, list[float]]
    robustness: RobustnessReport | None
    photographs: PhotographPredictions | None = None
    labels: list[LabelAccuracy] | None = None
    others: Tensor | None = None
    measured_on: str | None = None


@dataclass(frozen=True)
class Sources:
    """What a model is judged by beside its data set.

    near: the file of leave_two_out. fashion_mnist, photographs, labels: folders, see training.data.unrelated,
    training.data.photographs and training.evaluate.human_labels. None is left out.
    """

    near: Path | None = None
    fashion_mnist: Path | None = None
    photographs: Path | None = None
    labels: Path | None = None

    def check(self) -> None:
        """Raises TrainingError unless `evaluate` can read them, so that it is known before hours of training."""
        if self.near is not None:
            read_near(self.near)
        if self.fashion_mnist is not None:
            unrelated_images(1, SEED, self.fashion_mnist)
        if self.photographs is not None:
            read_photographs(self.photographs)


def evaluate(run: FinishedRun, dataset: DataSet, test_reads: Path, sources: Sources) -> Report:
    """Evaluate a finished run and write its report; nothing that is saved is computed again.

    All sources may be added later, without reading the test set again. Raises TrainingError when the data are missing
    or not the run's, or when a file cannot be written.
    """
    areas = read_near(sources.near) if sources.near and run.of.is_cifar10 else {}
    fashion_mnist = sources.fashion_mnist
    if sources.photographs is not None:
        _check_size(run)
    evaluation = saved_evaluation(run)
    if evaluation is None or evaluation.measured_on != measured_on(dataset):
        evaluation = _evaluate(run, dataset, test_reads, fashion_mnist)
        _save(run, evaluation)
    saved, temperature = evaluation.photographs, evaluation.temperature
    if sources.photographs is not None and (saved is None or saved.others_as_thumbnails is None):
        found = predict_photographs(answering(run), sources.photographs, photograph_side(run.config.enlarge))
        evaluation = replace(evaluation, photographs=found)
    if evaluation.photographs is not None:
        temperature = evaluation.photographs.thumbnail_temperature(evaluation.select)
    stale = temperature != evaluation.temperature or SERVED not in evaluation.far
    if stale or (fashion_mnist is not None and "fashion_mnist" not in evaluation.far[SERVED]):
        model = answering(run)
        known = _in_distribution(model, *run.data(dataset))
        far = _far(model, known, fashion_mnist, run.config.input_size, _others(model, dataset), temperature)
        evaluation = replace(evaluation, far=far, temperature=temperature)
    if sources.labels is not None:
        people = read_human_labels(sources.labels, evaluation.test.labels.numpy(), download=False)
        by_people = figures(evaluation.test.predicted(), evaluation.test.labels.numpy(), people)
        evaluation = replace(evaluation, labels=by_people)
    if evaluation.robustness is None:
        robustness = read_corrupted_test_set(run, dataset.test, test_reads)
        evaluation = replace(evaluation, robustness=robustness)
    evaluation = replace(evaluation, near=areas)
    _save(run, evaluation)
    report = _report(run, evaluation)
    indent = 2 if len(run.of.classes) <= MOST_INDENTED else None
    write_atomically(run.folder / REPORT, (report.model_dump_json(indent=indent) + "\n").encode())
    write_atomically(run.folder / REPORT_TEXT, report_text(evaluation.test, run.of.classes).encode())
    return report


def _check_size(run: FinishedRun) -> None:
    if run.graph is None or photograph_side(run.config.enlarge) == run.config.input_size or takes_any_size(run.graph):
        return
    raise TrainingError(
        f"the graph in {run.folder} takes no photographs: quantise what was evaluated with --photographs"
    )


def evaluated(run: FinishedRun) -> tuple[Evaluation, Report]:
    """What `evaluate` has saved. Raises TrainingError unless it is complete and of this run's very weights."""
    evaluation = saved_evaluation(run)
    try:
        report = Report.model_validate_json((run.folder / REPORT).read_bytes())
    except (OSError, ValidationError):
        report = None
    # A report of other weights has other accuracies on corrupted images.
    if (
        evaluation is None
        or report is None
        or evaluation.robustness is None
        or evaluation.robustness != report.robustness
    ):
        data = "" if run.of.is_cifar10 else " --data FOLDER"
        raise TrainingError(
            f"the run in {run.folder} was not evaluated: "
            f"`python -m training evaluate --run-dir {run.folder}{data}` does it"
        )
    return evaluation, report


def saved_evaluation(run: FinishedRun) -> Evaluation | None:
    """The saved evaluation of this run's very weights, perhaps without robustness; None if there is none."""
    try:
        with safe_open(str(run.folder / LOGITS), framework="pt") as saved:
            about = saved.metadata() or {}
            if about.get("weights_sha256") != run.weights_sha256:
                return None
            predictions = {
                name: Predictions(*(saved.get_tensor(f"{name}.{part}") for part in Predictions._fields))
                for name in SPLITS
            }
            return Evaluation(
                **predictions,
                temperature=json.loads(about.get("temperature", str(TEMPERATURE))),
                far=json.loads(about["far"]),
                near=json.loads(about["near"]),
                robustness=ROBUSTNESS.validate_json(about["robustness"]),
                photographs=_saved_photographs(saved),
                labels=LABELS.validate_json(about.get("labels", "null")),
                others=saved.get_tensor("others.logits") if "others.logits" in set(saved.keys()) else None,
                measured_on=about.get("measured_on"),
            )
    except (OSError, SafetensorError, KeyError, ValidationError):  # also: saved by an older version
        return None


def _saved_photographs(saved: Any) -> PhotographPredictions | None:
    if "photographs.report.logits" not in set(saved.keys()):
        return None
    calibrate, report = (
        Predictions(*(saved.get_tensor(f"photographs.{half}.{part}") for part in Predictions._fields))
        for half in HALVES
    )
    known = OTHERS_AS_THUMBNAILS in set(saved.keys())
    return PhotographPredictions(calibrate, report, saved.get_tensor(OTHERS_AS_THUMBNAILS) if known else None)


def _save(run: FinishedRun, evaluation: Evaluation) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name in SPLITS:
        predictions: Predictions = getattr(evaluation, name)
        tensors |= {f"{name}.{part}": value for part, value in predictions._asdict().items()}
    if evaluation.photographs:
        for half in HALVES:
            found: Predictions = getattr(evaluation.photographs, half)
            tensors |= {f"photographs.{half}.{part}": value for part, value in found._asdict().items()}
        if evaluation.photographs.others_as_thumbnails is not None:
            tensors[OTHERS_AS_THUMBNAILS] = evaluation.photographs.others_as_thumbnails
    if evaluation.others is not None:
        tensors["others.logits"] = evaluation.others
    about = {
        "weights_sha256": run.weights_sha256,
        "temperature": json.dumps(evaluation.temperature),
        "far": json.dumps(evaluation.far),
        "near": json.dumps(evaluation.near),
        "robustness": ROBUSTNESS.dump_json(evaluation.robustness).decode(),
        "labels": LABELS.dump_json(evaluation.labels).decode(),
    }
    if evaluation.measured_on is not None:
        about["measured_on"] = evaluation.measured_on
    write_atomically(run.folder / LOGITS, save_safetensors(tensors, metadata=about))


def _report(run: FinishedRun, evaluation: Evaluation) -> Report:
    calibrate, test, of_score = evaluation.calibrate, evaluation.test, evaluation.temperature
    calibration = calibration_report(calibrate, test)
    temperature, levels = calibration.temperature, conformal_levels(run, calibrate)
    return build_report(test, run.history, calibration, classes=run.of.classes).model_copy(
        update={
            "conformal": conformal_report(calibrate, test, temperature, levels) if levels else None,
            "selective": selective_report(test, temperature),
            "abstention": abstention_report(
                evaluation.near,
                evaluation.far,
                entropies(test.logits.numpy(), of_score),
                threshold(entropies(calibrate.logits.numpy(), of_score)),
                None if evaluation.others is None else entropies(evaluation.others.numpy(), of_score),
            ),
            "robustness": evaluation.robustness,
            "labels": evaluation.labels,
            "photographs": evaluation.photographs
            and photograph_report(evaluation.photographs, photograph_side(run.config.enlarge)),
        }
    )


def conformal_levels(run: FinishedRun, calibrate: Predictions) -> Sequence[float]:
    """The levels of prediction sets; of a user's own images those that so few can have."""
    return LEVELS if run.of.is_cifar10 else possible_levels(len(calibrate.labels))


def _evaluate(run: FinishedRun, dataset: DataSet, test_reads: Path, fashion_mnist: Path | None) -> Evaluation:
    images, parts = run.data(dataset)
    model = answering(run)
    known = _in_distribution(model, images, parts)
    others = _others(model, dataset)
    far = _far(model, known, fashion_mnist, run.config.input_size, others, TEMPERATURE)
    calibrate = images.take(parts.calibrate)
    return Evaluation(
        select=Predictions(torch.from_numpy(known.select.logits), images.labels[parts.select]),
        calibrate=Predictions(model.logits(calibrate.images), calibrate.labels),
        test=read_test_set(model, dataset.test, test_reads, run.weights_sha256),
        temperature=TEMPERATURE,
        far=far,
        near={},
        robustness=None,
        others=torch.from_numpy(others.logits) if others else None,
        measured_on=measured_on(dataset),
    )


def measured_on(dataset: DataSet) -> str | None:
    """The digest of the pictures that measure a model; None for CIFAR-10's, which never change."""
    if dataset.description.is_cifar10:
        return None
    others = [dataset.others.report] if dataset.others else []
    return " ".join(part.digest() for part in (dataset.test, *others))


class InDistribution(NamedTuple):
    """The network's outputs for some training images, with their labels int64 [N], and for the selection split."""

    bank: Outputs
    bank_labels: npt.NDArray[np.int64]
    select: Outputs


def _in_distribution(model: Answering, images: LabelledImages, parts: Split) -> InDistribution:
    order = torch.randperm(len(parts.train), generator=torch.Generator().manual_seed(SEED))
    bank = images.take(parts.train[order[:FITTED_ON]])
    return InDistribution(
        model.outputs(bank.images),
        bank.labels.numpy(),
        model.outputs(images.images[parts.select]),
    )


def _others(model: Answering, dataset: DataSet) -> Outputs | None:
    return model.outputs(dataset.others.report.images) if dataset.others else None


def _far(
    model: Answering,
    known: InDistribution,
    fashion_mnist: Path | None,
    side: int,
    others: Outputs | None,
    temperature: float,
) -> dict[str, dict[str, float]]:
    """Areas under the ROC curve by method and kind of image."""
    detectors = fit_all(known.bank, known.bank_labels, temperature)
    by_kind = {
        kind: aurocs(detectors, known.select, model.outputs(torch.from_numpy(other)))
        for kind, other in unrelated_images(UNRELATED_IMAGES, SEED, fashion_mnist, side).items()
    }
    if others is not None:
        by_kind["other"] = aurocs(detectors, known.select, others)
    return {name: {kind: areas[name] for kind, areas in by_kind.items()} for name in METHODS}


def read_test_set(model: Answering, test: LabelledImages, test_reads: Path, weights_sha256: str) -> Predictions:
    """The network's predictions for the test images, and a line in `test_reads`.

    Raises TrainingError, before any image is read, when the log cannot be written.
    """
    check_log(test_reads)
    predictions = Predictions(model.logits(test.images), test.labels)
    log_read(test_reads, weights_sha256, predictions.accuracy(), f"all {len(test.labels)}")
    return predictions


def read_corrupted_test_set(run: FinishedRun, test: LabelledImages, test_reads: Path) -> RobustnessReport:
    """Accuracy on corrupted copies of some test images, and a line in `test_reads`."""
    check_log(test_reads)
    graph = run.graph or build_graph(ServedNetwork(run.model()), side=run.config.input_size).SerializeToString()
    report = robustness_report(
        lambda images: run_graph(graph, images),
        test.images.numpy(),
        test.labels.numpy(),
        n=min(CORRUPTED_IMAGES if run.of.is_cifar10 else OWN_CORRUPTED_IMAGES, len(test.labels)),
        seed=SEED,
    )
    log_read(test_reads, run.weights_sha256, report.mean_accuracy, f"{report.n} damaged")
    return report
