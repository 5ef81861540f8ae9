"""Networks that learn on a GPU, and networks that teach them."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from app.bundle.manifest import Architecture
from app.bundle.names import CHECKPOINT
from app.bundle.reader import Bundle, BundleError
from app.network.mobilenet import mobilenet_v2
from training.config import IMAGENET_MEAN, IMAGENET_STD
from training.errors import TrainingError
from training.fit.run_folder import RUN, FinishedRun, check_cifar10, check_split
from training.gpu import efficientnet_lite

PRECISION = torch.bfloat16


class Resized(nn.Module):
    """A network behind one entrance: pixels from 0 to 255, float [N, 3, S, S] of any S, in batches that may differ.

    Each batch is enlarged to `side` bilinearly, as the served network does it, so one forward pass (and one set of
    batch statistics) is over all of them.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, side: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network, self.side = network, side
        per_channel = (1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)).reshape(per_channel), persistent=False)
        self.register_buffer("offset", (torch.tensor(mean) / torch.tensor(std)).reshape(per_channel), persistent=False)

    def forward(self, *batches: Tensor) -> Tensor:
        """float32 logits [N, classes] of all batches, in their order."""
        enlarged = [
            one if one.shape[-1] == self.side else F.interpolate(one, self.side, mode="bilinear", align_corners=False)
            for one in batches
            if len(one)
        ]
        pixels = torch.cat(enlarged) * self.scale - self.offset
        pixels = pixels.to(memory_format=torch.channels_last)
        with torch.autocast(pixels.device.type, dtype=PRECISION):
            logits: Tensor = self.network(pixels)
        return logits.float()


def mobilenet(architecture: Architecture, weights: Mapping[str, Tensor] | None) -> Resized:
    """Our network; `weights` have torchvision's names. Its sides are 32 times `enlarge`."""
    network = mobilenet_v2(architecture)
    if weights is not None:
        floats = {name: value.float() for name, value in weights.items()}
        missing, _ = network.load_state_dict(floats, strict=False)
        if lacking := [name for name in missing if not name.endswith("num_batches_tracked")]:
            raise TrainingError(f"the weights are not those of MobileNetV2: {lacking[0]} is missing")
    network.features[0].enlarge = nn.Identity()  # `Resized` does it; the layer has no weights
    return Resized(network, 32 * architecture.enlarge, IMAGENET_MEAN, IMAGENET_STD)


def trained(folder: Path, split_seed: int) -> Resized:
    """The network of a finished run or a bundle, of any architecture of ours.

    Raises TrainingError when `folder` is neither, is of other images than CIFAR-10's, or was trained with another split
    than that of `split_seed`.
    """
    check_cifar10("--teacher", folder)
    check_split("--teacher", folder, split_seed)
    if (folder / RUN).exists():
        run = FinishedRun.read(folder)
        return mobilenet(run.config.architecture, load(run.weights))
    try:
        bundle = Bundle.load(folder)
    except BundleError as error:
        raise TrainingError(f"--teacher: {error}") from None
    if CHECKPOINT not in bundle:
        raise TrainingError(f"--teacher {folder} is quantised and holds no weights for PyTorch: name the float bundle")
    return mobilenet(bundle.manifest.architecture, load(bundle.read(CHECKPOINT)))


def lite2(side: int) -> Resized:
    network = efficientnet_lite.efficientnet_lite2()
    return Resized(network, side, efficientnet_lite.MEAN, efficientnet_lite.STD)


class Learner:
    """A network in training: its optimizer, and the moving average of its weights, which is the result."""

    def __init__(self, name: str, model: Resized, device: torch.device, *, weight_decay: float) -> None:
        self.name, self.model = name, model.to(device).train()
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)
        filters = [one for one in model.parameters() if one.ndim > 1]
        others = [one for one in model.parameters() if one.ndim <= 1]
        groups = [{"params": filters, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        # The rate stays a number of Python: a tensor on the device is not faster with fused AdamW.
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), fused=True)
        self._live, self._mean = _numbers(model.network), _numbers(self.averaged.network)

    def learn(self, loss: Tensor, rate: float) -> None:
        """One step down the gradient of `loss`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """One update of the average, running statistics included."""
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights, float32 on the CPU, with torchvision's names."""
        return {
            name: value.detach().float().cpu().contiguous() if value.is_floating_point() else value.cpu()
            for name, value in self.averaged.network.state_dict().items()
        }


def _numbers(network: nn.Module) -> list[Tensor]:
    return [value.detach() for value in network.state_dict().values() if value.is_floating_point()]


def as_teacher(model: Resized) -> Resized:
    """A copy that only answers: batch norms are folded into the convolutions, weights are bfloat16."""
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    _fold(teacher.network)
    teacher.network.to(PRECISION)
    return teacher


def _fold(module: nn.Module) -> None:
    children = list(module.named_children())
    for (name, one), (after, norm) in zip(children, children[1:], strict=False):
        if isinstance(one, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            fused = fuse_conv_bn_eval(one, norm)
            setattr(module, after, nn.Identity())
            setattr(module, name, fused)
    for _, child in children:
        _fold(child)
