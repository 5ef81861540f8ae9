import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, mahalanobis
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy
from sklearn.decomposition import PCA

from training.evaluate.abstention import (
    COMPARED,
    METHODS,
    RIDGE,
    TEMPERATURES,
    abstention_report,
    auroc,
    aurocs,
    choose_temperature,
    entropies,
    fit_all,
    fit_novelty,
    threshold,
)
from training.evaluate.network_outputs import Outputs

RANDOM = np.random.default_rng(0)


def seen(count: int, centre: float = 1.0) -> Outputs:
    features = np.abs(RANDOM.normal(centre, 1, (count, 16))).astype(np.float32)
    return Outputs(features, (features @ np.eye(16, 10) * 3).astype(np.float32))


BANK, LABELS, OTHER = seen(60), np.arange(60) % 4, seen(25)


def scores(name: str) -> np.ndarray:
    return COMPARED[name](BANK, LABELS, fit_novelty(BANK))(OTHER)


def test_scores_from_logits_follow_their_formulas() -> None:
    assert scores("maximum_softmax") == pytest.approx(1 - softmax(OTHER.logits, axis=1).max(1), abs=1e-6)
    assert scores("maximum_logit") == pytest.approx(-OTHER.logits.max(1))
    assert scores("energy") == pytest.approx(-np.log(np.exp(OTHER.logits.astype(float)).sum(1)), rel=1e-5)


def test_knn_is_the_tenth_smallest_cosine_distance() -> None:
    expected = np.sort(cdist(OTHER.features, BANK.features, "cosine"), axis=1)[:, 9]
    assert scores("knn") == pytest.approx(expected, abs=1e-5)


def test_the_residual_is_in_the_components_after_the_usual_ones() -> None:
    unit, others = (part.features / np.linalg.norm(part.features, axis=1, keepdims=True) for part in (BANK, OTHER))
    components = PCA().fit(unit).transform(others)
    assert scores("residual") == pytest.approx(np.linalg.norm(components[:, 6:10], axis=1), abs=1e-3)


def test_the_score_is_the_mean_of_both_standardised_on_images_that_are_not_neighbours() -> None:
    fitted = fit_novelty(BANK)
    assert len(fitted.neighbours) == 30 and fitted.neighbours.dtype == fitted.unusual.dtype == torch.float16
    rest = fitted.distances(torch.from_numpy(BANK.features[30:]))
    distances = fitted.distances(torch.from_numpy(OTHER.features))
    expected = ((distances - rest.mean(0)) / rest.std(0)).mean(1)
    assert scores("novelty") == pytest.approx(expected.numpy(), abs=1e-5)
    assert fitted.score(torch.from_numpy(BANK.features[30:])).mean().item() == pytest.approx(0, abs=1e-5)
    assert fitted.score(torch.zeros(1, 16)).isfinite().all()


def test_mahalanobis_is_the_distance_to_the_nearest_class() -> None:
    unit, others = (part.features / np.linalg.norm(part.features, axis=1, keepdims=True) for part in (BANK, OTHER))
    means = np.stack([unit[label == LABELS].mean(0) for label in range(4)])
    covariance = np.cov((unit - means[LABELS]).T, bias=True)
    covariance += RIDGE * np.trace(covariance) / 16 * np.eye(16)
    inverse = np.linalg.inv(covariance)
    expected = [min(mahalanobis(one, mean, inverse) ** 2 for mean in means) for one in others]
    assert scores("mahalanobis") == pytest.approx(np.array(expected), rel=1e-3)


def test_what_is_like_the_bank_scores_lower() -> None:
    far = Outputs(OTHER.features * np.linspace(0, 3, 16, dtype=np.float32) ** 4, OTHER.logits * 0)
    detectors = fit_all(BANK, LABELS)
    areas = aurocs(detectors, OTHER, far)
    assert set(areas) == set(METHODS) and min(areas.values()) > 0.65
    assert max(aurocs(detectors, far, OTHER).values()) < 0.35


def test_auroc_is_the_chance_that_unknown_is_higher() -> None:
    known, unknown = (RANDOM.integers(0, 9, count).astype(np.float32) for count in (30, 20))
    pairs = unknown[:, None] - known[None]
    assert auroc(known, unknown) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert auroc(np.zeros(3, np.float32), np.zeros(2, np.float32)) == 0.5


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_entropy_is_that_of_the_softened_probabilities(temperature: float) -> None:
    logits = RANDOM.normal(size=(20, 10)).astype(np.float32) * 9
    expected = scipy_entropy(softmax(logits / temperature, axis=1), axis=1)
    np.testing.assert_allclose(entropies(logits, temperature), expected, rtol=1e-5, atol=1e-6)
    assert entropies(np.zeros((1, 10), np.float32), temperature)[0] == pytest.approx(np.log(10))
    assert entropies(np.array([[-4e3, 4e3, *[0] * 8]], np.float32), temperature)[0] == 0


def logits_that_differ_in(first: float, others: float, count: int) -> np.ndarray:
    """Ten logits: the first with this mean, the others with this spread."""
    logits = RANDOM.normal(0, others, (count, 10))
    logits[:, 0] = RANDOM.normal(first, 1, count)
    return logits.astype(np.float32)


def test_the_temperature_is_the_smallest_that_tells_other_things_as_well_as_any() -> None:
    # The largest logit tells them apart: no temperature is better than 1.
    assert choose_temperature(logits_that_differ_in(12, 1, 300), logits_that_differ_in(6, 1, 300)) == 1
    # Only the small logits tell them apart: with 1 the entropy is nearly 0 for both.
    known, others = logits_that_differ_in(40, 6, 300), logits_that_differ_in(40, 1, 300)
    chosen = choose_temperature(known, others)
    areas = {one: auroc(entropies(known, one), entropies(others, one)) for one in TEMPERATURES}
    assert chosen > 1 and areas[chosen] > areas[1.0] and areas[chosen] > max(areas.values()) - 0.05
    assert all(areas[one] < areas[chosen] for one in TEMPERATURES if one < chosen)


@pytest.mark.parametrize(("count", "kept"), [(1, 0.95), (20, 0.95), (100, 0.95), (7, 0.5), (10, 1.0)])
def test_the_threshold_keeps_its_share_and_is_the_smallest_to_do_so(count: int, kept: float) -> None:
    values = RANDOM.permutation(count).astype(np.float32)
    limit = threshold(values, kept)
    assert (values <= limit).mean() >= kept
    assert (values < limit).mean() < kept


def test_the_report_has_every_method_beside_the_one_that_is_served() -> None:
    near = {name: [0.5, 0.6, 0.7, 0.8, 0.9] for name in METHODS}
    report = abstention_report(near, {"entropy": {"noise": 0.99}}, np.array([0.1, 0.2, 0.3, 0.4], np.float32), 0.3)
    assert (report.method, report.threshold, report.kept) == ("entropy", 0.3, 0.75)
    assert [one.near_mean for one in report.methods] == pytest.approx([0.7] * len(METHODS))
    assert {one.method: one.far for one in report.methods}["entropy"] == {"noise": 0.99}
    assert abstention_report({}, {}, np.zeros(1, np.float32), 0.0).methods[0].near_mean is None
