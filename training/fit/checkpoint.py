"""The state that a run resumes from: one safetensors file, which is replaced as a whole."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from training.atomic_files import write_atomically
from training.errors import TrainingError


@dataclass(frozen=True)
class Progress:
    """How far a run is, saved beside its tensors. Sums are over the images of the current epoch."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps finished in the current epoch
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    epoch_seconds: float = 0.0
    cpu_seconds: float = 0.0  # over the whole run, all threads and processes
    history: list[dict[str, Any]] = field(default_factory=list)


class Checkpoint(NamedTuple):
    """Tensors by name, with the prefixes "live.", "averaged." and "optimizer.", and the progress they belong to."""

    tensors: dict[str, Tensor]
    progress: Progress

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def save_checkpoint(
    path: Path,
    network: nn.Module,
    averaged: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Replace the file at `path`. Raises OSError."""
    tensors = state_tensors(network, averaged, optimizer)
    # The JSON travels inside the one file: after a kill, two files could be of two moments.
    metadata = {"progress": json.dumps(asdict(progress))}
    write_atomically(path, save_safetensors(contiguous(tensors), metadata=metadata))


def state_tensors(
    network: nn.Module, averaged: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The tensors of a Checkpoint."""
    tensors = {f"live.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"averaged.{name}": value for name, value in averaged.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    return tensors


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`; None if there is none. Raises TrainingError when it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as saved:
            tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 (not a mapping)
            return Checkpoint(tensors, Progress(**json.loads(saved.metadata()["progress"])))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is damaged ({error}): delete the folder to start the run again") from None


def read_progress(path: Path) -> Progress | None:
    """The progress alone of the checkpoint at `path`; None if there is none.

    Raises OSError, SafetensorError, ValueError, KeyError or TypeError when it is damaged.
    """
    if not path.exists():
        return None
    with safe_open(str(path), framework="pt") as saved:
        return Progress(**json.loads(saved.metadata()["progress"]))


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load the state of each parameter from tensors named "INDEX.NAME"."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = optimizer.state_dict()
    state["state"] = {index: {} for index in range(len(parameters))}
    for name, value in tensors.items():
        index, key = name.split(".")
        like = parameters[int(index)]
        # The fused step walks memory: a moment must have its parameter's memory layout, or bits end up elsewhere.
        moment = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        state["state"][int(index)][key] = moment
    optimizer.load_state_dict(state)


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What safetensors can save: it takes no other memory layout."""
    return {name: value.contiguous() for name, value in tensors.items()}
