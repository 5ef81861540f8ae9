"""Training in bfloat16 where that is faster; weights, their average and the optimizer stay float32.

Mixed precision is Micikevicius et al. 2018 (arXiv:1710.03740); bfloat16 has float32's range and needs no loss scale.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from training.config import Precision


def mixed(precision: Precision) -> AbstractContextManager[object]:
    """What a forward pass runs in. Under "float32" it changes nothing."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16")


def keep_slow_layers(network: nn.Module, precision: Precision) -> None:
    """Let depthwise convolutions that halve their input compute in float32 inside `mixed`.

    oneDNN has no fast bfloat16 gradient for them: three layers took 45 % of a step.
    """
    if precision == "float32":
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride != (1, 1):
            module.__class__ = _Float32Conv2d  # the same parameters under the same names


class _Float32Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float()).to(input.dtype)
