import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom

from tests.training.conftest import Answer
from training.evaluate.compare import compare
from training.evaluate.network_outputs import Predictions


def answers(both: int, only_old: int, only_new: int, neither: int) -> tuple[Predictions, Predictions]:
    """Of two models that are equally sure of every answer."""
    counts = [both, only_old, only_new, neither]
    right = np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)
    return predictions(right[0], 3.0), predictions(right[1], 3.0)


def predictions(right: np.ndarray, sure: float | np.ndarray) -> Predictions:
    """Of images of class 0; the answer's logit is `sure`, the others are 0."""
    logits = np.zeros((len(right), 10), np.float32)
    logits[np.arange(len(right)), np.where(right, 0, 1)] = sure
    return Predictions(torch.from_numpy(logits), torch.zeros(len(right), dtype=torch.int64))


@pytest.mark.parametrize(
    ("counts", "better", "verdict"),
    [
        ((900, 10, 40, 50), True, "the new one is better"),
        ((900, 40, 10, 50), False, "the new one is worse"),
        ((900, 20, 30, 50), False, "no difference that 1,000 images can show"),
        ((900, 0, 0, 100), False, "no difference that 1,000 images can show"),
    ],
)
def test_noise_is_not_called_a_gain(counts: tuple[int, int, int, int], better: bool, verdict: str) -> None:
    found = compare(*answers(*counts))
    both, only_old, only_new, _ = counts
    assert (found.better, found.verdict) == (better, verdict)
    assert (found.only_old, found.only_new, found.n) == (only_old, only_new, 1000)
    assert found.old_accuracy == pytest.approx((both + only_old) / 1000)
    assert found.new_accuracy == pytest.approx((both + only_new) / 1000)
    discordant = only_old + only_new
    assert found.p_value == pytest.approx(min(1, 2 * binom.cdf(min(only_old, only_new), discordant, 0.5)))
    assert found.loss_p_value == pytest.approx(found.p_value, abs=0.05)  # as many losses fall as answers are won


def test_likelihood_shows_what_answers_do_not() -> None:
    right = np.arange(1000) % 10 > 0
    vague, honest = predictions(right, 3.0), predictions(right, np.where(right, 5.0, 1.0))
    found = compare(vague, honest)
    assert (found.p_value, found.verdict) == (1, "the new one is better")
    assert found.loss_p_value < 0.001 and found.new_loss < found.old_loss
    assert compare(honest, vague).verdict == "the new one is worse"
    fewer = predictions(right & (np.arange(1000) % 50 > 1), np.where(right, 5.0, 1.0))
    assert compare(vague, fewer).verdict == "the new one is better by one test, and worse by the other"
    assert not compare(vague, fewer).better


def test_a_run_and_its_bundle_are_the_same_model(
    run_dir: Path, finished_bundle: Path, tiny_data: None, command: Callable[..., Answer]
) -> None:
    answer = command("compare", run_dir, finished_bundle, "--threads", 1)
    assert answer.code == 1
    assert "exact test): p = 1\n" in answer.out and "no difference that 40 images can show" in answer.out


@pytest.mark.parametrize("first", [True, False])
def test_what_is_neither_run_nor_bundle_is_refused_before_anything_is_computed(
    tmp_path: Path,
    finished_bundle: Path,
    first: bool,
    command: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.data.cifar10.load", lambda *_, **__: pytest.fail("it read images"))
    answer = command(
        "compare", *((tmp_path, finished_bundle) if first else (finished_bundle, tmp_path)), "--threads", 1
    )
    assert answer.code == 1 and f"{tmp_path} holds no run" in answer.err


def test_two_models_of_another_split_are_compared_on_what_that_holds_out(
    run_dir: Path, finished_bundle: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    record = json.loads((other / "run.json").read_text())
    record["config"]["split_seed"] = 1
    (other / "run.json").write_text(json.dumps(record))
    answer = command("compare", other, other, "--threads", 1)
    assert answer.code == 1 and "p = 1\nlog-loss (sign flips): p = 1\nno difference that 40" in answer.out
    for pair, seeds in (((other, finished_bundle), "0, not 1"), ((finished_bundle, other), "1, not 0")):
        answer = command("compare", *pair, "--threads", 1)
        assert answer.code == 1 and f"was trained with --split-seed {seeds}: it has seen images" in answer.err
