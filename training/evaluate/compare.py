"""Is one model better than another, or is it chance? McNemar's test on held-out training images."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from torch import Tensor

from app.bundle.names import GRAPH, MANIFEST
from app.bundle.reader import Bundle, BundleError
from training.data.cifar10 import LabelledImages
from training.errors import TrainingError
from training.evaluate.network_outputs import predict_logits
from training.export.graph import run_graph
from training.fit.run_folder import FinishedRun, check_split

Model = Callable[[Tensor], npt.NDArray[np.float32]]

SIGNIFICANCE = 0.05


class Comparison(NamedTuple):
    """Two models on the same n images. Accuracies are fractions; p_value is two-sided."""

    n: int
    old_accuracy: float
    new_accuracy: float
    only_old: int  # images that the old model has right and the new one wrong
    only_new: int
    p_value: float

    @property
    def better(self) -> bool:
        """The new model is right more often, and the difference is significant."""
        return self.only_new > self.only_old and self.p_value < SIGNIFICANCE

    @property
    def verdict(self) -> str:
        if self.p_value >= SIGNIFICANCE:
            return f"no difference that {self.n:,} images can show"
        return "the new one is better" if self.better else "the new one is worse"


def compare(old: npt.NDArray[np.bool_], new: npt.NDArray[np.bool_]) -> Comparison:
    """Compare two arrays bool [N], whether each image's answer is right (McNemar 1947, exact)."""
    only_old, only_new = int((old & ~new).sum()), int((new & ~old).sum())
    discordant = only_old + only_new
    p_value = float(binomtest(only_new, discordant).pvalue) if discordant else 1.0
    return Comparison(len(old), float(old.mean()), float(new.mean()), only_old, only_new, p_value)


def read_model(source: Path, seed: int) -> Model:
    """The network of a bundle or a finished run: a function from uint8 images [N, 32, 32, 3] to logits [N, classes].

    Raises TrainingError when `source` is neither, or was trained with another split than that of `seed`.
    """
    check_split("the model in", source, seed)
    if (source / MANIFEST).exists():
        try:
            graph = Bundle.load(source).read(GRAPH)
        except BundleError as error:
            raise TrainingError(str(error)) from None
        return lambda images: run_graph(graph, images.numpy())
    model = FinishedRun.read(source).model()
    return lambda images: predict_logits(model, images).numpy()


def correct(model: Model, held_out: LabelledImages) -> npt.NDArray[np.bool_]:
    """bool [N]: whether the model's answer is right for each image."""
    right: npt.NDArray[np.bool_] = model(held_out.images).argmax(1) == held_out.labels.numpy()
    return right
