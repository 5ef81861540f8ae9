"""MobileNetV2 for small images, in PyTorch: torchvision's network with other strides or an enlarged input.

The network is Sandler et al. 2018 (arXiv:1801.04381), width 1.0. The original halves its input five times, which is too
much for a 32x32 image. So the stem and the first halving stage may keep the size of their input:

    mobilenet_v2(Architecture(stem_stride=1, stage2_stride=1))  # 88 M multiply-adds, last map 4x4
    mobilenet_v2(Architecture(stem_stride=1, stage2_stride=2))  # 24.5 M multiply-adds, last map 2x2

Or the network enlarges its input and keeps all strides, so its ImageNet filters see the frequencies that they were
trained on:

    mobilenet_v2(Architecture(stem_stride=2, stage2_stride=2, enlarge=4))  # 98 M multiply-adds, last map 4x4

A photograph enters the same network with 64 x 64 real pixels: the first layer enlarges any image to the same size, so
all other layers cost the same.

Strides and enlargement add no weights: a checkpoint loads into every architecture, but is correct only for its own.
This module needs torch: only training and the PyTorch session import it.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import MobileNetV2

from ..bundle.manifest import Architecture

SIDE = 32  # pixels of a thumbnail


def mobilenet_v2(architecture: Architecture, classes: int = 10, side: int = SIDE) -> MobileNetV2:
    """An untrained network for images of `side` pixels. Its state_dict has torchvision's names.

    The input is normalised float32 [N, 3, H, W], the output float32 logits [N, classes]. A network that enlarges takes
    any H and W: its layers see `side` x `side` pixels times `enlarge`.
    """
    # The rows of table 2 in the paper: expansion, channels, repeats, stride.
    stages = [
        [1, 16, 1, 1],
        [6, 24, 2, architecture.stage2_stride],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    # No dropout: it does not help over a few epochs, and it would draw from torch's global random generator.
    network = MobileNetV2(num_classes=classes, inverted_residual_setting=stages, dropout=0.0)
    stem = network.get_submodule("features.0.0")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (architecture.stem_stride, architecture.stem_stride)
    for layer in network.modules():
        if isinstance(layer, nn.ReLU6):
            layer.inplace = False  # in place, autograd copies each output once more; bits are the same
    if architecture.enlarge > 1:
        # A named layer, so that the layers after it keep torchvision's names.
        size = (side * architecture.enlarge, side * architecture.enlarge)
        enlarge = nn.Upsample(size=size, mode="bilinear")
        layers = network.features[0].named_children()
        network.features[0] = nn.Sequential(OrderedDict([("enlarge", enlarge), *layers]))
    return network.to(memory_format=torch.channels_last)


class Preprocessed(nn.Module):
    """A network with its preprocessing: uint8 RGB images [N, H, W, 3] in, float32 logits [N, classes] out.

    This is the only definition of scaling and normalisation. Training, evaluation, the exported graph and the PyTorch
    session all use it, so they cannot differ.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std`: one value for each channel, of images scaled to 0..1."""
        super().__init__()
        self.network = network
        per_channel = (1, 3, 1, 1)
        # (x / 255 - mean) / std as one multiplication and one subtraction
        scale = 1.0 / (255.0 * torch.tensor(std, dtype=torch.float64))
        offset = torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", scale.float().reshape(per_channel), persistent=False)
        self.register_buffer("offset", offset.float().reshape(per_channel), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """float32 [N, 3, H, W] from uint8 RGB images [N, H, W, 3]: (images / 255 - mean) / std."""
        # NHWC data viewed as NCHW has torch's channels_last layout, so the permutation copies nothing.
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)
        return pixels * self.scale - self.offset

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.normalise(images))
        return logits


def count_macs(network: nn.Module, height: int = SIDE, width: int = SIDE) -> int:
    """The multiply-adds of one image's forward pass. Convolutions and linear layers count, as is usual."""
    total = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += output[0].numel() * module.weight[0].numel()

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    was_training = network.training
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 3, height, width))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    return total


def count_parameters(network: nn.Module) -> int:
    """The number of trainable parameters. Running statistics of batch norms do not count."""
    return sum(parameter.numel() for parameter in network.parameters())
