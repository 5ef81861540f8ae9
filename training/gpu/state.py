"""The state that an interrupted `training.gpu.loop.train` goes on from: one safetensors file, replaced as a whole."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from app.bundle.report import Epoch
from training.atomic_files import write_atomically
from training.errors import TrainingError
from training.fit.checkpoint import Checkpoint, Progress, contiguous, restore_optimizer, state_tensors
from training.gpu.learners import Learner


class Place(BaseModel):
    """Where the loop is, beside the learners. Times are seconds since its beginning, without interruptions."""

    step: int = 0
    elapsed: float = 0.0
    epoch_begun: float = 0.0
    plainly_seen: int = 0  # images of this epoch that were not mixed
    sums: list[list[float]]  # by learner: loss, and right answers to views that are not mixed
    history: dict[str, list[Epoch]]  # by learner


@dataclass(frozen=True)
class State:
    """The file, and what decides the weights beside the time: only the state of the same run is gone on from."""

    path: Path
    identity: Mapping[str, Any]

    def save(self, learners: Sequence[Learner], place: Place) -> None:
        """Raises OSError."""
        tensors: dict[str, Tensor] = {}
        for one in learners:
            state = state_tensors(one.model.network, one.averaged.network.state_dict(), one.optimizer)
            tensors |= {f"{one.name}.{name}": value for name, value in state.items()}
        metadata = {"place": place.model_dump_json(), "identity": json.dumps(self.identity)}
        write_atomically(self.path, save_safetensors(contiguous(tensors), metadata=metadata))

    def restore(self, learners: Sequence[Learner]) -> Place:
        """Put the learners where they were; the beginning, if nothing is saved.

        Raises TrainingError when the file is of another run, or damaged.
        """
        if not self.path.exists():
            return Place(sums=[[0.0, 0.0] for _ in learners], history={one.name: [] for one in learners})
        try:
            with safe_open(str(self.path), framework="pt") as saved:
                metadata = saved.metadata()
                place = Place.model_validate_json(metadata["place"])
                same = json.loads(metadata["identity"]) == json.loads(json.dumps(self.identity))
                tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise TrainingError(f"{self.path} is damaged ({reason}): remove it to start again") from None
        if not same:
            raise TrainingError(f"{self.path} is the state of another run: use its options, or remove it")
        for one in learners:
            own = Checkpoint(Checkpoint(tensors, Progress()).part(f"{one.name}."), Progress())
            one.model.network.load_state_dict(own.part("live."))
            one.averaged.network.load_state_dict(own.part("averaged."))
            restore_optimizer(one.optimizer, own.part("optimizer."))
        return place
