import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from training.evaluate.conformal import (
    LEVELS,
    conformal_report,
    covered,
    expected_coverage,
    fit_conformal,
    prediction_sets,
    served_sets,
    threshold,
    true_probabilities,
)
from training.evaluate.network_outputs import Predictions


def scored(count: int, seed: int, signal: float = 2.5) -> Predictions:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=random)
    logits = torch.randn(count, 10, generator=random)
    logits[torch.arange(count), labels] += signal
    return Predictions(logits, labels)


@given(n=st.integers(1, 3000), level=st.sampled_from(LEVELS))
def test_the_threshold_is_the_quantile_of_the_nonconformity_scores(n: int, level: float) -> None:
    truth = np.random.default_rng(n).random(n)
    rank = covered(n, level)
    if rank > n:
        assert threshold(truth, level) == 0
    else:
        # The textbook's: 1 - p at the ceil((n + 1) level)-th smallest.
        assert threshold(truth, level) == pytest.approx(1 - np.sort(1 - truth)[rank - 1])
        assert (truth >= threshold(truth, level)).sum() == rank


@pytest.mark.parametrize(
    ("n", "level", "rank"), [(19, 0.95, 19), (18, 0.95, 19), (2500, 0.99, 2476), (199, 0.995, 199)]
)
def test_the_number_of_covered_images_is_the_rank_of_the_level(n: int, level: float, rank: int) -> None:
    assert covered(n, level) == rank


@pytest.mark.parametrize("level", LEVELS)
def test_exchangeable_images_are_covered_as_often_as_promised(level: float) -> None:
    coverages = []
    for seed in range(20):
        both = scored(1500, seed, signal=1.0)
        calibrate, test = (Predictions(both.logits[part], both.labels[part]) for part in (slice(500), slice(500, 1500)))
        at_least = threshold(true_probabilities(calibrate, 1.3), level)
        coverages.append((true_probabilities(test, 1.3) >= at_least).mean())
    expected, deviation = covered(500, level) / 501, float(stats.betabinom(1000, 496, 5).std()) / 1000
    spread = max(deviation, float(np.std(coverages))) / np.sqrt(len(coverages))
    assert np.mean(coverages) == pytest.approx(expected, abs=4 * spread)


def test_served_sets_are_the_sets_and_the_most_probable_class() -> None:
    values = np.array([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.4, 0.4, 0.2]])
    assert prediction_sets(values, [0.6] * 3).tolist() == [[False] * 3, [True, False, False], [False] * 3]
    assert served_sets(values, [0.6] * 3).sum(1).tolist() == [1, 1, 1]
    assert served_sets(values, [0.3] * 3).tolist() == [[True, True, False], [True, False, False], [True, True, False]]
    assert served_sets(values, [0.6, 0.1, 0.6]).tolist() == [
        [True, True, False],
        [True, False, False],
        [True, True, False],
    ]
    assert served_sets(values, [0.0] * 3).all()


def test_the_report_counts_what_the_sets_hold() -> None:
    calibrate, test = scored(800, 1), scored(600, 2)
    report, fitted = conformal_report(calibrate, test, 1.1), fit_conformal(calibrate, 1.1)
    assert report.fitted_on == 800 and [one.coverage for one in report.levels] == list(LEVELS)
    for level, found in zip(fitted.levels, report.levels, strict=True):
        assert level.threshold == found.threshold
        values = (test.logits.double() / 1.1).softmax(1).numpy()
        assert level.by_class == found.by_class
        raw = values >= (level.threshold if level.by_class is None else np.array(level.by_class))
        served = raw | (values == values.max(1, keepdims=True))
        labels = test.labels.numpy()
        assert found.raw_coverage == pytest.approx(raw[np.arange(600), labels].mean())
        assert found.served_coverage == pytest.approx(served[np.arange(600), labels].mean())
        assert found.mean_size == pytest.approx(served.sum(1).mean())
        assert sum(found.sizes) == 600 and found.sizes[0] == (served.sum(1) == 1).sum()
        assert found.empty == pytest.approx((raw.sum(1) == 0).mean())
        for label in range(10):
            held = served[labels == label, label]
            assert found.class_coverage[label] == pytest.approx(held.mean())


def test_too_few_images_cover_everything() -> None:
    report = conformal_report(scored(5, 1), scored(50, 2), 1.0)
    assert {(one.threshold, one.served_coverage, one.mean_size) for one in report.levels} == {(0.0, 1.0, 10.0)}
    assert expected_coverage(0.99, [5], [50]) == (1.0, 1.0)


def of_counts(*counts: int) -> Predictions:
    """Predictions with this number of images of each class."""
    many = scored(sum(counts), 1)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Predictions(many.logits[:, : len(counts)], labels)


def test_each_class_with_enough_images_has_a_threshold_of_its_own() -> None:
    calibrate = of_counts(300, 200, 150, 60, 0)
    truth, labels = true_probabilities(calibrate, 1.0), calibrate.labels.numpy()
    first, *others = fit_conformal(calibrate, 1.0).levels
    shared = threshold(truth[labels >= 2], 0.95)
    expected = [threshold(truth[labels == 0], 0.95), threshold(truth[labels == 1], 0.95), shared, shared]
    assert first.by_class == [*expected, first.threshold] and first.threshold == threshold(truth, 0.95)
    assert [level.by_class for level in others] == [None, None]
    assert others[0].thresholds(5) == [others[0].threshold] * 5


@pytest.mark.parametrize("counts", [(199, 199, 199), (300, 300, 10), (300, 1)])
def test_all_classes_share_a_threshold_where_some_have_too_few_images(counts: tuple[int, ...]) -> None:
    assert [level.by_class for level in fit_conformal(of_counts(*counts), 1.0).levels] == [None] * 3


def test_a_higher_level_never_has_a_higher_threshold() -> None:
    """At 99 % the hard class, the smaller one, shares a threshold that is above its own at 95 %."""
    calibrate = of_counts(5000, 200)
    hard = calibrate.labels == 1
    calibrate.logits[:] = torch.where(calibrate.labels[:, None] == torch.arange(2), 3.0, 0.0)
    calibrate.logits[hard] = torch.where(torch.arange(2) == 0, torch.linspace(-3, 6, int(hard.sum()))[:, None], 0.0)
    first, second, third = fit_conformal(calibrate, 1.0).levels
    assert first.by_class is not None and first.by_class[1] < threshold(true_probabilities(calibrate, 1.0), 0.99)
    for lower, higher in ((first, second), (second, third)):
        assert (np.array(higher.thresholds(2)) <= np.array(lower.thresholds(2))).all()


def test_hard_classes_are_covered_as_often_as_easy_ones() -> None:
    def hard_and_easy(count: int, seed: int) -> Predictions:
        easy = scored(count, seed)
        signal = torch.linspace(-2, 2, 10)[easy.labels]
        easy.logits[torch.arange(count), easy.labels] += signal
        return easy

    calibrate, test = hard_and_easy(4000, 1), hard_and_easy(20000, 2)
    (level,) = conformal_report(calibrate, test, 1.0, [0.95]).levels
    assert min(level.class_coverage) > 0.91
    assert level.expected_coverage[0] < level.raw_coverage < level.expected_coverage[1]
    common = prediction_sets((test.logits.double().softmax(1)).numpy(), [level.threshold] * 10)
    of_hardest = common[test.labels.numpy() == 0, 0].mean()
    assert of_hardest < 0.85


def test_the_interval_is_that_of_simulated_splits() -> None:
    low, high = expected_coverage(0.95, [200], [400])
    random = np.random.default_rng(0)
    ranks = random.random((4000, 600))
    limits = np.sort(ranks[:, :200], axis=1)[:, covered(200, 0.95) - 1 :][:, :1]
    shares = (ranks[:, 200:] <= limits).mean(1)
    assert ((shares >= low) & (shares <= high)).mean() == pytest.approx(0.99, abs=0.006)


def test_the_interval_of_groups_is_that_of_simulated_groups() -> None:
    low, high = expected_coverage(0.95, [20, 200], [300, 100])
    random = np.random.default_rng(0)
    covered_images = np.zeros(4000)
    for fitted, tested in ((20, 300), (200, 100)):
        ranks = random.random((4000, fitted + tested))
        limits = np.sort(ranks[:, :fitted], axis=1)[:, covered(fitted, 0.95) - 1 :][:, :1]
        covered_images += (ranks[:, fitted:] <= limits).sum(1)
    shares = covered_images / 400
    assert ((shares >= low) & (shares <= high)).mean() == pytest.approx(0.99, abs=0.006)


def test_a_network_that_is_always_sure_and_always_wrong_is_covered_by_everything() -> None:
    logits = torch.full((300, 10), -1000.0)
    logits[:, 0] = 1000.0
    wrong = Predictions(logits, torch.ones(300, dtype=torch.int64))
    assert {one.served_coverage for one in conformal_report(wrong, wrong, 1.0).levels} == {1.0}
