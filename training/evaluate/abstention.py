"""Out-of-distribution scores, compared; larger always means less like the training images.

    detector = METHODS["knn"](bank, labels, fit_novelty(bank))    # features and logits of training images
    scores = detector(outputs)                                    # float32 [N]

Features are the inputs of the last layer: the last map, averaged over its places.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp, softmax
from sklearn.metrics import roc_auc_score

from app.bundle.report import AbstentionReport, AbstentionScores
from app.inference.decisions import ENTROPY
from app.inference.decisions import entropy as served_entropy
from app.network.novelty import NEIGHBOUR, Novelty, neighbour_distance, unit
from training.evaluate.metrics import share
from training.evaluate.network_outputs import Outputs

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Detector = Callable[[Outputs], Floats]

PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))  # classes that a network is trained without, two at a time
SERVED = ENTROPY
TEMPERATURE = 4.0  # of the entropy, where no pictures of other things are held out to choose it on
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # that are compared where there are some
NEIGHBOURS = 250  # training images among which the nearest neighbours are searched
# Principal directions of the features by decreasing variance: the first 512 of 1,280 are usual, the next 256 unusual.
# Later ones vary even less, and would triple the memory traffic.
USUAL, UNUSUAL = 0.4, 0.2
LEAST_DEVIATION = 1e-3  # of a distance; with fewer images than directions it would be zero
KEPT = 0.95  # share of calibration images at or below the threshold
RIDGE = 1e-2  # added to a covariance, as a share of its mean variance: there may be more features than images


def maximum_softmax(*_: object) -> Detector:
    """One minus the largest probability (Hendrycks & Gimpel 2017, arXiv:1610.02136)."""
    return lambda outputs: 1 - softmax(outputs.logits, axis=1).max(1)


def maximum_logit(*_: object) -> Detector:
    """Minus the largest logit (Hendrycks et al. 2022, arXiv:1911.11132)."""
    return lambda outputs: -outputs.logits.max(1)


def energy(*_: object) -> Detector:
    """Minus the logarithm of the summed exponentials of the logits (Liu et al. 2020, arXiv:2010.03759)."""
    return lambda outputs: -logsumexp(outputs.logits, axis=1)


def knn(bank: Outputs, *_: object) -> Detector:
    """One minus the cosine similarity of the tenth nearest neighbour (Sun et al. 2022, arXiv:2204.06507)."""
    neighbours = unit(torch.from_numpy(bank.features[:NEIGHBOURS]))
    return lambda outputs: neighbour_distance(unit(torch.from_numpy(outputs.features)), neighbours).numpy()


def residual(_: Outputs, __: Labels, fitted: Novelty) -> Detector:
    """Length along unusual directions, of features of unit length (after Wang et al. 2022, arXiv:2203.10807)."""
    return lambda outputs: fitted.distances(torch.from_numpy(outputs.features))[:, 1].numpy()


def novelty(_: Outputs, __: Labels, fitted: Novelty) -> Detector:
    """app.network.novelty: the mean of the distances of `knn` and `residual`, each standardised."""
    return lambda outputs: fitted.score(torch.from_numpy(outputs.features)).numpy()


def entropies(logits: Floats, temperature: float) -> Floats:
    """float32 [N] for logits [N, classes]: the served scores, before they are rounded."""
    return np.array([served_entropy(one[None], temperature) for one in logits], np.float32)


def choose_temperature(known: Floats, others: Floats) -> float:
    """The entropy's temperature, for logits [N, classes] of pictures of the classes and of other things.

    It is the smallest of TEMPERATURES whose area under the ROC curve is at most one standard error below the largest,
    which is the rule of Breiman et al. (1984) with the error of a difference on the same pictures (DeLong et al. 1988,
    doi:10.2307/2531595). What a larger temperature adds rests on the small logits, which training with other pictures
    shaped, so it tells less of things unlike those pictures.
    """
    placed = [_placements(entropies(known, one), entropies(others, one)) for one in TEMPERATURES]
    best = max(placed, key=lambda one: one[0].mean())
    for temperature, of_images in zip(TEMPERATURES, placed, strict=True):
        differences = [most - some for most, some in zip(best, of_images, strict=True)]
        error = np.sqrt(sum(one.var() / len(one) for one in differences))
        if differences[0].mean() <= error:
            return temperature
    raise AssertionError("the best differs from itself")


def _placements(known: Floats, others: Floats) -> tuple[Floats, Floats]:
    """For each known score the share of other scores above it, and for each other score that of known ones below it.

    float32; equal scores count half. The mean of both is the area under the ROC curve.
    """
    above = np.sign(others - known[:, None]).astype(np.float32) / 2 + 0.5
    return above.mean(1), above.mean(0)


def mahalanobis(bank: Outputs, labels: Labels, _: Novelty) -> Detector:
    """Squared distance to the nearest class mean under the classes' shared covariance.

    Lee et al. 2018 (arXiv:1807.03888), on features of unit length: otherwise a few large features dominate
    (Mueller & Hein 2025, arXiv:2505.18032).
    """
    features = _unit(bank)
    classes, index = np.unique(labels, return_inverse=True)
    means = np.stack([features[labels == label].mean(0) for label in classes])
    centred = (features - means[index]).astype(np.float64)
    covariance = centred.T @ centred / len(centred)
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whiten = np.linalg.cholesky(np.linalg.inv(covariance))
    centres = means @ whiten

    def distance(outputs: Outputs) -> Floats:
        points = _unit(outputs) @ whiten
        squares = (points**2).sum(1, keepdims=True) - 2 * points @ centres.T + (centres**2).sum(1)
        nearest: Floats = squares.min(1).astype(np.float32)
        return nearest

    return distance


COMPARED: Mapping[str, Callable[[Outputs, Labels, Novelty], Detector]] = {
    method.__name__: method for method in (maximum_softmax, maximum_logit, energy, mahalanobis, knn, residual, novelty)
}
METHODS = (*COMPARED, SERVED)


def fit_novelty(bank: Outputs) -> Novelty:
    """The score's parameters from features of training images [N, D], N at least NEIGHBOUR + 2.

    The first NEIGHBOURS are its neighbours; of fewer images half, but at least NEIGHBOUR. The others standardise it.
    """
    features = unit(torch.from_numpy(bank.features))
    neighbours = features[: min(NEIGHBOURS, max(NEIGHBOUR, len(features) // 2))]
    assert len(features) >= NEIGHBOUR + 2
    centre = features.mean(0)
    # In double precision: variances differ by more than single precision holds.
    centred = (features - centre).double()
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)  # from the most variance to the least
    unusual = directions[:, round(USUAL * len(centre)) : round((USUAL + UNUSUAL) * len(centre))]
    fitted = Novelty(neighbours.half(), centre, unusual.half().contiguous(), torch.zeros(2), torch.ones(2))
    others = fitted.distances(features[len(neighbours) :])
    return fitted._replace(mean=others.mean(0), deviation=others.std(0).clamp_min(LEAST_DEVIATION))


def fit_all(bank: Outputs, labels: Labels, temperature: float = TEMPERATURE) -> dict[str, Detector]:
    """Every method, fitted on training images; `temperature` is the entropy's."""
    fitted = fit_novelty(bank)
    detectors = {name: method(bank, labels, fitted) for name, method in COMPARED.items()}
    detectors[SERVED] = lambda outputs: entropies(outputs.logits, temperature)
    return detectors


def aurocs(detectors: Mapping[str, Detector], known: Outputs, unknown: Outputs) -> dict[str, float]:
    """The area under the ROC curve by method: the chance that an unknown image scores higher than a known one."""
    return {name: auroc(detector(known), detector(unknown)) for name, detector in detectors.items()}


def abstention_report(
    near: Mapping[str, Sequence[float]],
    far: Mapping[str, Mapping[str, float]],
    scores: Floats,
    limit: float,
    others: Floats | None = None,
) -> AbstentionReport:
    """All methods compared; above `limit` the service abstains.

    `scores` are those of the report's images, `others` those of pictures of other things, if there are any.
    """
    refused = None if others is None else others > limit
    return AbstentionReport(
        method=SERVED,
        threshold=limit,
        kept=float((scores <= limit).mean()),
        near_pairs=list(PAIRS) if near else [],
        methods=[
            AbstentionScores(
                method=name,
                near=list(near.get(name, ())),
                near_mean=float(np.mean(near[name])) if name in near else None,
                far=dict(far.get(name, {})),
            )
            for name in METHODS
        ],
        others=None if refused is None else len(refused),
        refused=None if refused is None else share(refused),
    )


def auroc(known: npt.NDArray[np.floating[Any]], unknown: npt.NDArray[np.floating[Any]]) -> float:
    truth = np.repeat([0, 1], [len(known), len(unknown)])
    return float(roc_auc_score(truth, np.concatenate([known, unknown])))


def threshold(scores: npt.NDArray[np.floating[Any]], kept: float = KEPT) -> float:
    """The smallest of `scores` such that at least the share `kept` of them is at or below it."""
    return float(np.sort(scores)[int(np.ceil(kept * len(scores))) - 1])


def _unit(outputs: Outputs) -> Floats:
    return unit(torch.from_numpy(outputs.features)).numpy()
