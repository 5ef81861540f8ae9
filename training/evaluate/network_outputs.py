"""A network's outputs for images, and its predictions for labelled images.

answering(run).logits(images)     # of a float network in PyTorch, or of a quantised run's graph in ONNX Runtime
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from app.network.mobilenet import Preprocessed
from app.network.served import ServedNetwork
from training.export.graph import FEATURES, run_graph, with_features
from training.fit.run_folder import FinishedRun


class Predictions(NamedTuple):
    """logits: float32 [N, classes]; labels: int64 [N]."""

    logits: Tensor
    labels: Tensor

    def predicted(self) -> npt.NDArray[np.int64]:
        return self.logits.argmax(1).numpy()

    def correct(self) -> npt.NDArray[np.bool_]:
        right: npt.NDArray[np.bool_] = self.predicted() == self.labels.numpy()
        return right

    def accuracy(self) -> float:
        return float(self.correct().mean())

    def probabilities(self, temperature: float = 1.0) -> npt.NDArray[np.float32]:
        return (self.logits / temperature).softmax(1).numpy()


def predict_logits(model: nn.Module, images: Tensor, batch_size: int = 25) -> Tensor:
    """float32 logits [N, classes] of uint8 images [N, H, W, 3], in evaluation mode."""
    # Larger batches spend their time allocating memory: without tcmalloc, 250 images are half as fast.
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in torch.split(images, batch_size)])
    model.train(was_training)
    return logits.clone()


class Outputs(NamedTuple):
    """A network's outputs. features: float32 [N, 1280], pooled; logits: float32 [N, classes]."""

    features: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]


def predict_features(model: Preprocessed, images: Tensor, batch_size: int = 25) -> Outputs:
    """Pooled features and logits of uint8 images [N, H, W, 3], in evaluation mode."""
    served = ServedNetwork(model)
    was_training = model.training
    served.eval()
    with torch.inference_mode():
        batches = [served(batch) for batch in torch.split(images, batch_size)]
    served.train(was_training)
    features, logits = (torch.cat([getattr(one, name) for one in batches]).numpy() for name in ("features", "logits"))
    return Outputs(features, logits)


class Answering(Protocol):
    """What a report judges. Images are uint8 [N, H, W, 3]."""

    def logits(self, images: Tensor) -> Tensor:
        """float32 [N, classes]."""
        ...

    def outputs(self, images: Tensor) -> Outputs: ...


@dataclass(frozen=True)
class FloatNetwork:
    """A network in PyTorch."""

    model: Preprocessed

    def logits(self, images: Tensor) -> Tensor:
        return predict_logits(self.model, images)

    def outputs(self, images: Tensor) -> Outputs:
        return predict_features(self.model, images)


@dataclass(frozen=True)
class Graph:
    """The content of an ONNX file in ONNX Runtime."""

    content: bytes

    def logits(self, images: Tensor) -> Tensor:
        return torch.from_numpy(run_graph(self.content, images.numpy()))

    def outputs(self, images: Tensor) -> Outputs:
        pixels, extended = images.numpy(), with_features(self.content)
        return Outputs(run_graph(extended, pixels, FEATURES), run_graph(extended, pixels))


def answering(run: FinishedRun) -> Answering:
    """What the bundle of `run` will answer with."""
    return FloatNetwork(run.model()) if run.graph is None else Graph(run.graph)
