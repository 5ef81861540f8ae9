"""The served network in PyTorch: one forward pass computes all outputs that the service needs.

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
    """The outputs of the network for N images, all float32.

    features: [N, channels], the last feature map averaged over its locations.
    logits: [N, classes].
    ood_scores: [N], out-of-distribution scores, larger for less usual images. None without a Novelty.
    class_maps: [N, classes, h, w], the contribution of each location to each logit. None unless requested.
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
        feature_map = self.network.features(self.model.normalise(images))
        features = F.adaptive_avg_pool2d(feature_map, (1, 1)).flatten(1)
        return NetworkOutputs(
            features=features,
            logits=self.network.classifier(features),
            ood_scores=None if self.novelty is None else self.novelty.score(features),
            class_maps=self._class_maps(feature_map) if maps else None,
        )

    def _class_maps(self, feature_map: Tensor) -> Tensor:
        """float32 [N, classes, h, w]: the last linear layer applied at every location of [N, channels, h, w].

        Averaging commutes with a linear layer, so the mean of each map is its logit (Zhou et al. 2016,
        arXiv:1512.04150; here the bias is included).
        """
        maps: Tensor = self.network.classifier(feature_map.movedim(1, -1)).movedim(-1, 1)
        return maps
