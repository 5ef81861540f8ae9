"""Detecting images of classes that were left out of training (near out-of-distribution).

For each of five fixed pairs of classes, a network is trained on the other eight. Held-out images of the eight are then
the known images, and held-out images of the pair the unknown ones.

    FOLDER/without_0_1/     the run, as training.fit.run keeps it, and features.safetensors

The result is a JSON file, which `python -m training evaluate` takes into the report.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ValidationError
from safetensors import safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from training.atomic_files import write_atomically
from training.config import Config
from training.data.cifar10 import LabelledImages, Split
from training.errors import TrainingError
from training.evaluate.abstention import METHODS, PAIRS, aurocs, fit_all
from training.evaluate.network_outputs import Outputs, predict_features
from training.fit.run import Run, Watcher
from training.fit.run_folder import FinishedRun

RUNS, RESULT = Path("runs/leave_two_out"), Path("models/leave_two_out.json")  # by default
FEATURES = "features.safetensors"
FITTED_ON = 5000  # training images whose features are kept
# Five networks in the time of one: the methods are compared, not the networks.
CONFIG = Config(stem_stride=1, stage2_stride=2, enlarge=1, epochs=3, zoom=1.0, colour=0.0)


class Fold(NamedTuple):
    """One network's outputs for some of its training images, for held-out known images and for unknown ones.

    Logits are those of the eight known classes; labels, int64 [N], count all ten.
    """

    pair: tuple[int, int]
    bank: Outputs
    bank_labels: npt.NDArray[np.int64]
    known: Outputs
    unknown: Outputs


def leave_two_out(
    folder: Path, config: Config, init: str, images: LabelledImages, parts: Split, watch: Watcher | None = None
) -> Iterator[Fold]:
    """Train the five networks, or read their outputs back, one at a time. Raises the errors of training.fit.run."""
    for pair in PAIRS:
        run_dir = folder / f"without_{pair[0]}_{pair[1]}"
        train, select = (without(images.take(part), pair) for part in (parts.train, parts.select))
        run = Run(run_dir, config, init, train, select)  # refuses the folder of another run
        if not (run_dir / FEATURES).exists():
            run.fit(watch)
            _save_features(run, pair, images.take(parts.held_out))
        yield _read(run_dir / FEATURES, pair)


def compare_methods(folds: Iterable[Fold]) -> dict[str, list[float]]:
    """Areas under the ROC curve by method, in the order of the pairs."""
    by_pair = [aurocs(fit_all(one.bank, one.bank_labels), one.known, one.unknown) for one in folds]
    return {name: [areas[name] for areas in by_pair] for name in METHODS}


def render(areas: dict[str, list[float]]) -> str:
    """A line for each method: its name, its mean area and that of each pair."""
    return "\n".join(
        f"{name:16} {sum(by_pair) / len(by_pair):.4f}   " + "  ".join(f"{area:.4f}" for area in by_pair)
        for name, by_pair in areas.items()
    )


class NearResults(BaseModel):
    """The content of the result file: the networks' configuration, and the areas by method and pair."""

    config: dict[str, Any]
    pairs: list[tuple[int, int]]
    methods: dict[str, list[float]]


def read_near(path: Path) -> dict[str, list[float]]:
    """The areas by method; empty without a file. Raises TrainingError when it is damaged."""
    try:
        return NearResults.model_validate_json(path.read_bytes()).methods
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise TrainingError(f"--near {path} is damaged ({str(error).splitlines()[0]})") from None


def write_near(path: Path, config: Config, areas: dict[str, list[float]]) -> None:
    content = NearResults(config=config.as_dict(), pairs=list(PAIRS), methods=areas)
    write_atomically(path, (content.model_dump_json(indent=2) + "\n").encode())


def without(images: LabelledImages, pair: tuple[int, int]) -> LabelledImages:
    return images.take(~_among(images.labels, pair))


def _save_features(run: Run, pair: tuple[int, int], held_out: LabelledImages) -> None:
    model = FinishedRun.read(run.folder).model()
    chosen = torch.randperm(len(run.train.labels), generator=torch.Generator().manual_seed(run.config.seed))[:FITTED_ON]
    bank = run.train.take(chosen.sort().values)
    sets = {
        "bank": bank,
        "known": without(held_out, pair),
        "unknown": held_out.take(_among(held_out.labels, pair)),
    }
    tensors = {"bank.labels": bank.labels}
    columns = [class_id for class_id in range(10) if class_id not in pair]
    for name, part in sets.items():
        outputs = predict_features(model, part.images)
        tensors[f"{name}.features"] = torch.from_numpy(outputs.features)
        tensors[f"{name}.logits"] = torch.from_numpy(outputs.logits[:, columns].copy())
    write_atomically(run.folder / FEATURES, save_safetensors(tensors))


def _read(path: Path, pair: tuple[int, int]) -> Fold:
    with safe_open(str(path), framework="numpy") as saved:
        outputs = {
            name: Outputs(saved.get_tensor(f"{name}.features"), saved.get_tensor(f"{name}.logits"))
            for name in ("bank", "known", "unknown")
        }
        return Fold(pair, outputs["bank"], saved.get_tensor("bank.labels"), outputs["known"], outputs["unknown"])


def _among(labels: Tensor, pair: tuple[int, int]) -> Tensor:
    return (labels == pair[0]) | (labels == pair[1])
