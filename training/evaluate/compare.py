"""Is one model better than another, or is it chance? Two tests on held-out training images.

McNemar's test looks at answers that only one of the two has right. A permutation test looks at the log-loss
(negative log-likelihood), each model at its own best temperature: it sees differences that answers alone do not show.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, permutation_test
from torch import Tensor

from app.bundle.names import GRAPH, MANIFEST
from app.bundle.reader import Bundle, BundleError
from training.data.cifar10 import LabelledImages
from training.errors import TrainingError
from training.evaluate.calibration import fit_temperature, log_losses
from training.evaluate.network_outputs import Graph, Predictions, answering
from training.fit.run_folder import FinishedRun, check_cifar10, check_split

Model = Callable[[Tensor], Tensor]

SIGNIFICANCE = 0.05
RESAMPLES, SEED = 9999, 0


class Comparison(NamedTuple):
    """Two models on the same n images. Accuracies are fractions, losses in nats, p-values two-sided."""

    n: int
    old_accuracy: float
    new_accuracy: float
    only_old: int  # images that the old model has right and the new one wrong
    only_new: int
    p_value: float
    old_loss: float
    new_loss: float
    loss_p_value: float

    @property
    def better(self) -> bool:
        """The new model is significantly better by one test, and not significantly worse by the other."""
        return self._gains() == {True}

    @property
    def verdict(self) -> str:
        gains = self._gains()
        if not gains:
            return f"no difference that {self.n:,} images can show"
        if len(gains) == 2:
            return "the new one is better by one test, and worse by the other"
        return "the new one is better" if self.better else "the new one is worse"

    def render(self, old: object, new: object) -> str:
        """Lines with both models' figures under these names, the p-values and the verdict."""
        figures = ((old, self.old_accuracy, self.only_old, self.old_loss),) + (
            (new, self.new_accuracy, self.only_new, self.new_loss),
        )
        return "\n".join(
            [
                *(
                    f"{name}: {accuracy:.2%} of {self.n:,}, {only} that the other has wrong; log-loss {loss:.4f}"
                    for name, accuracy, only, loss in figures
                ),
                f"answers (McNemar's exact test): p = {self.p_value:.3g}",
                f"log-loss (sign flips): p = {self.loss_p_value:.3g}",
                self.verdict,
            ]
        )

    def _gains(self) -> set[bool]:
        """Whether the significant differences are gains."""
        answers, losses = self.only_new > self.only_old, self.new_loss < self.old_loss
        tests = sorted([(self.p_value, answers), (self.loss_p_value, losses)])
        if tests[0][0] >= SIGNIFICANCE / len(tests):  # two tests find chance twice as often (Holm 1979)
            return set()
        return {gain for p_value, gain in tests if p_value < SIGNIFICANCE}


def compare(old: Predictions, new: Predictions) -> Comparison:
    """Compare predictions for the same images: answers (McNemar 1947, exact), and losses (sign flips, Fisher 1935)."""
    was, now = old.correct(), new.correct()
    only_old, only_new = int((was & ~now).sum()), int((now & ~was).sum())
    discordant = only_old + only_new
    losses = [log_losses(one, fit_temperature(one)) for one in (old, new)]
    return Comparison(
        n=len(was),
        old_accuracy=float(was.mean()),
        new_accuracy=float(now.mean()),
        only_old=only_old,
        only_new=only_new,
        p_value=float(binomtest(only_new, discordant).pvalue) if discordant else 1.0,
        old_loss=float(losses[0].mean()),
        new_loss=float(losses[1].mean()),
        loss_p_value=_sign_flips(losses[1] - losses[0]),
    )


def _sign_flips(differences: npt.NDArray[np.float64]) -> float:
    """The chance of a mean as far from zero if each difference, float64 [N], were as likely with the other sign."""
    if not differences.any():
        return 1.0
    found = permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, batch=500, rng=SEED
    )
    return float(found.pvalue)


def read_model(source: Path, seed: int) -> Model:
    """The network of a bundle or a finished run, from uint8 images [N, 32, 32, 3] to logits float32 [N, classes].

    Raises TrainingError when `source` is neither, is of other images than CIFAR-10's, or was trained with another split
    than that of `seed`.
    """
    check_cifar10("the model in", source)
    check_split("the model in", source, seed)
    if (source / MANIFEST).exists():
        try:
            graph = Bundle.load(source).read(GRAPH)
        except BundleError as error:
            raise TrainingError(str(error)) from None
        return Graph(graph).logits
    return answering(FinishedRun.read(source)).logits


def predict(model: Model, held_out: LabelledImages) -> Predictions:
    return Predictions(model(held_out.images), held_out.labels)
