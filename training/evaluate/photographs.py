"""A network's results on photographs of kinds that its training never saw.

found = predict_photographs(model, folder, side=64)
fit_photographs(found)          # for the manifest: temperature, thresholds and histograms, of one half
photograph_report(found)        # measured on the other half
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.bundle.manifest import Abstention, Calibration, Photographs
from app.bundle.report import PhotographAbstention, PhotographClass, PhotographReport
from app.network.mobilenet import SIDE as THUMBNAIL_SIDE
from training.data.cifar10 import CLASSES
from training.data.photographs import OTHER, decode, halves, read_photographs
from training.data.photographs import SIDE as PHOTOGRAPH_SIDE
from training.errors import TrainingError
from training.evaluate.abstention import KEPT, SERVED, TEMPERATURE, auroc, choose_temperature, entropies, threshold
from training.evaluate.calibration import calibration_report, fit_temperature
from training.evaluate.conformal import conformal_report, fit_conformal
from training.evaluate.drift_reference import drift_reference
from training.evaluate.metrics import share
from training.evaluate.network_outputs import Answering, Predictions

LEAST = 100  # photographs of the classes, and of other things, in each half


class PhotographPredictions(NamedTuple):
    """Outputs for the two halves; labels are OTHER or of a class.

    others_as_thumbnails: float32 logits [N, classes] of the other things in the calibration half, shrunk to thumbnails;
    None in what older versions saved.
    """

    calibrate: Predictions
    report: Predictions
    others_as_thumbnails: Tensor | None

    def temperature(self) -> float:
        """Of the served entropy, for photographs."""
        others = of_classes(self.calibrate, known=False)
        return choose_temperature(of_classes(self.calibrate).logits.numpy(), others.logits.numpy())

    def thumbnail_temperature(self, known: Predictions) -> float:
        """Of the served entropy, for thumbnails; `known` are held-out thumbnails of the classes."""
        others = self.others_as_thumbnails
        return TEMPERATURE if others is None else choose_temperature(known.logits.numpy(), others.numpy())


def photograph_side(enlarge: int) -> int:
    """Pixels of each side of a photograph: no more than the layers of a network with this enlargement work on."""
    return min(PHOTOGRAPH_SIDE, THUMBNAIL_SIDE * enlarge)


def predict_photographs(model: Answering, folder: Path, side: int) -> PhotographPredictions:
    """Raises TrainingError when `folder` cannot be read or holds too few photographs."""
    parts = halves(read_photographs(folder, side))
    found = []
    for part in parts:
        known = int((part.labels != OTHER).sum())
        if min(known, len(part.labels) - known) < LEAST:
            raise TrainingError(
                f"{folder} has too few photographs: a half of what is held out has {known} of the classes and"
                f" {len(part.labels) - known} of other things, {LEAST} of each are needed"
            )
        found.append(Predictions(model.logits(part.images), part.labels))
    others = parts[0].take(parts[0].labels == OTHER).names
    thumbnails = np.stack([decode(folder / name, THUMBNAIL_SIDE) for name in others])
    return PhotographPredictions(found[0], found[1], model.logits(torch.from_numpy(thumbnails)))


def of_classes(predictions: Predictions, *, known: bool = True) -> Predictions:
    """The photographs of the classes, or those of other things."""
    chosen = (predictions.labels != OTHER) == known
    return Predictions(predictions.logits[chosen], predictions.labels[chosen])


def fit_photographs(found: PhotographPredictions, side: int) -> Photographs:
    """What the manifest says of photographs, fitted on the calibration half."""
    calibrate = of_classes(found.calibrate)
    temperature, of_score = fit_temperature(calibrate), found.temperature()
    limit = threshold(entropies(calibrate.logits.numpy(), of_score))
    return Photographs(
        height=side,
        width=side,
        calibration=Calibration(temperature=temperature, conformal=fit_conformal(calibrate, temperature)),
        abstention=Abstention(method=SERVED, temperature=of_score, threshold=limit, kept=KEPT),
        reference=drift_reference(calibrate, temperature),
    )


def photograph_report(found: PhotographPredictions, side: int) -> PhotographReport:
    """Results on the other half, with what was fitted on the calibration half."""
    calibrate, report, others = (
        of_classes(found.calibrate),
        of_classes(found.report),
        of_classes(found.report, known=False),
    )
    fitted = fit_photographs(found, side)
    temperature, limit = fitted.calibration.temperature, fitted.abstention.threshold
    known_scores, other_scores = (entropies(part.logits.numpy(), found.temperature()) for part in (report, others))
    per_class = [
        PhotographClass(
            class_id=label,
            label=CLASSES[label],
            support=int((report.labels == label).sum()),
            recall=share(report.correct()[(report.labels == label).numpy()]),
        )
        for label in sorted(set(report.labels.tolist()))
    ]
    return PhotographReport(
        side=side,
        n=len(report.labels),
        others=len(others.labels),
        accuracy=share(report.correct()),
        macro_recall=float(np.mean([one.recall.value for one in per_class])),
        per_class=per_class,
        calibration=calibration_report(calibrate, report),
        conformal=conformal_report(calibrate, report, temperature),
        abstention=PhotographAbstention(
            method=SERVED,
            threshold=limit,
            kept=share(known_scores <= limit),
            refused=share(other_scores > limit),
            auroc=auroc(known_scores, other_scores),
        ),
    )
