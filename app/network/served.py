"""The served network: everything that the service answers from, in one forward pass, in PyTorch.

    served = ServedNetwork(Preprocessed(network, mean, std), novelty).eval()
    served(images).logits                    # uint8 [N, H, W, 3] -> float32 [N, classes]

The PyTorch session runs this module. `training.export.graph` writes the same computation in ONNX operators, and export
compares the two. This module needs torch: see app.network.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.mobilenetv2 import MobileNetV2

from .mobilenet import Preprocessed
from .novelty import Novelty


class NetworkOutputs(NamedTuple):
    """What the network gives for N images, each float32.

    features: [N, channels], those of the last map, averaged over its places.
    logits: [N, classes].
    ood_scores: [N], larger for images less like the training images; None without a Novelty.
    class_maps: [N, classes, h, w], what each place of the last map adds to each logit; None unless asked for.
    """

    features: Tensor
    logits: Tensor
    ood_scores: Tensor | None
    class_maps: Tensor | None


class ServedNetwork(nn.Module):
    """A trained network with its preprocessing, its out-of-distribution score and its class maps."""

    def __init__(self, model: Preprocessed, novelty: Novelty | None = None) -> None:
        """`novelty` must lie on the device of `model`."""
        super().__init__()
        assert isinstance(model.network, MobileNetV2)
        self.model = model
        self.network = model.network
        self.novelty = novelty

    def forward(self, images: Tensor, maps: bool = False) -> NetworkOutputs:
        """The outputs for uint8 RGB images [N, H, W, 3]; the class maps only with `maps`."""
        places = self.network.features(self.model.normalise(images))
        features = F.adaptive_avg_pool2d(places, (1, 1)).flatten(1)
        return NetworkOutputs(
            features=features,
            logits=self.network.classifier(features),
            ood_scores=None if self.novelty is None else self.novelty.score(features),
            class_maps=self._class_maps(places) if maps else None,
        )

    def _class_maps(self, places: Tensor) -> Tensor:
        """The last layer applied at every place: averaging over places and a linear layer may change places.

        Their means are therefore the logits exactly (Zhou et al. 2016, arXiv:1512.04150; unlike there, with the bias).
        """
        maps: Tensor = self.network.classifier(places.movedim(1, -1)).movedim(-1, 1)
        return maps
