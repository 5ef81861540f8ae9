"""A finished run, read back from its folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from torchvision.models.mobilenetv2 import MobileNetV2

from app.bundle.manifest import sha256
from app.bundle.report import Epoch
from app.network.mobilenet import Preprocessed, mobilenet_v2
from training.config import IMAGENET_MEAN, IMAGENET_STD, Config
from training.data.cifar10 import LabelledImages, Split, load, split
from training.errors import TrainingError
from training.fit.run import RUN, STATE, WEIGHTS
from training.provenance import environment


@dataclass(frozen=True)
class Outcome:
    """What a run was asked for and what came of it. `weights` is the content of a safetensors file."""

    folder: Path
    config: Config
    initial_weights: str
    train_data: str
    selection_data: str
    environment: Mapping[str, Any]
    history: tuple[Epoch, ...]
    cpu_seconds: float
    weights: bytes
    teacher: str | None = None  # sha256 of its graph; of several, divided by commas
    continued: tuple[Mapping[str, Any], ...] = ()  # later environments, each with the epoch and step it took over at

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises TrainingError when the folder holds no run, one that has not finished, or a damaged one."""
        try:
            run = json.loads((folder / RUN).read_bytes())
            config = Config.recorded(run["config"])
            if not (folder / STATE).exists():
                raise _unfinished(folder, 0, config)
            with safe_open(str(folder / STATE), framework="pt") as saved:
                progress = json.loads(saved.metadata()["progress"])
            if not (folder / WEIGHTS).exists():
                raise _unfinished(folder, progress["epoch"], config)
            return cls(
                folder=folder,
                config=config,
                initial_weights=run["initial_weights"],
                train_data=run["train_data"],
                selection_data=run["selection_data"],
                environment=run.get("environment") or environment(),
                history=tuple(Epoch.model_validate(row) for row in progress["history"]),
                cpu_seconds=progress["cpu_seconds"],
                weights=(folder / WEIGHTS).read_bytes(),
                teacher=run.get("teacher"),
                continued=tuple(run.get("continued", ())),
            )
        except FileNotFoundError:
            raise TrainingError(f"{folder} holds no run: `python -m training fit` makes one") from None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, ValidationError) as error:
            raise TrainingError(f"{folder} holds a damaged run ({str(error).splitlines()[0]})") from None

    @property
    def weights_sha256(self) -> str:
        return sha256(self.weights)

    def network(self) -> MobileNetV2:
        """The trained network, in evaluation mode."""
        network = mobilenet_v2(self.config.architecture)
        try:
            network.load_state_dict(load_safetensors(self.weights))
        except (SafetensorError, RuntimeError) as error:
            raise TrainingError(f"{self.folder / WEIGHTS} is damaged ({str(error).splitlines()[0]})") from None
        return network.eval()

    def model(self) -> Preprocessed:
        """The trained network with its preprocessing, in evaluation mode."""
        return Preprocessed(self.network(), IMAGENET_MEAN, IMAGENET_STD).eval()

    def data(self, data_dir: Path, *, download: bool) -> tuple[LabelledImages, Split]:
        """The training images and this run's split of them. Raises TrainingError when they are not the run's."""
        images = load(data_dir, train=True, download=download)
        parts = split(images.labels, self.config.split_seed)
        if images.take(parts.select).digest() != self.selection_data:
            raise TrainingError(f"--data-dir {data_dir} holds other images than the run in {self.folder} was made with")
        return images, parts


def _unfinished(folder: Path, epochs: int, config: Config) -> TrainingError:
    return TrainingError(
        f"the run in {folder} is not finished ({epochs} of {config.epochs} epochs): "
        f"`python -m training fit` with its options goes on with it"
    )
