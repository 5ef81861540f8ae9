"""Training in bfloat16 where that is faster, on CPUs and GPUs; weights, averages and the optimizer stay float32.

Mixed precision is Micikevicius et al. 2018 (arXiv:1710.03740); bfloat16 has float32's range and needs no loss scale.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from training.config import Precision
from training.errors import TrainingError


def mixed(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context for a forward pass on `device`; with "float32" it changes nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def prepare(network: nn.Module, precision: Precision, device: torch.device) -> None:
    """Prepare `network` for `mixed`. Raises TrainingError for a GPU that only emulates bfloat16.

    On CPUs, depthwise convolutions that halve their input stay in float32: oneDNN has no fast bfloat16 gradient for
    them, and three layers took 45 % of a step.
    """
    if precision == "float32":
        return
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise TrainingError("precision is bfloat16: this GPU does not compute in it (Ampere and later do): float32")
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride != (1, 1):
            module.__class__ = _Float32Conv2d  # the same parameters under the same names


class _Float32Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float()).to(input.dtype)
