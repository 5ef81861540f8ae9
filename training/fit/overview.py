"""A run as people read it, finished or not: what it is, where it stands, its curve."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError

from app.bundle.names import PICTURES
from app.bundle.report import Epoch
from training.atomic_files import write_atomically
from training.config import FIELDS, Config
from training.data.cifar10 import DESCRIPTION
from training.data.description import Description
from training.errors import TrainingError
from training.export.bundle import bundle_name
from training.export.plots import accuracy_and_loss
from training.fit.checkpoint import Progress, read_progress
from training.fit.metrics import read_metrics
from training.fit.run_folder import METRICS, RUN, STATE, WEIGHTS
from training.plural import plural
from training.provenance import describe

CURVE = PICTURES[0]
ROWS = 10  # of the history
WIDTH = 60  # of a curve in text
HEIGHTS = "▁▂▃▄▅▆▇█"
LATEST = {"time", "train_loss", "train_accuracy", "images_per_second"}


class Overview(NamedTuple):
    """`progress` is None before the first save; `latest` is the last line of metrics.jsonl about training."""

    folder: Path
    config: Config
    hardware: Mapping[str, Any] | None
    finished: bool
    progress: Progress | None
    history: Sequence[Epoch]
    latest: Mapping[str, Any] | None
    of: Description = DESCRIPTION
    quantised: bool = False


def read_overview(folder: Path) -> Overview:
    """Raises TrainingError when the folder holds no run, or a damaged one."""
    try:
        record = json.loads((folder / RUN).read_bytes())
        progress = read_progress(folder / STATE)
        trained = [row for row in read_metrics(folder / METRICS) if row.keys() >= LATEST]
        return Overview(
            folder=folder,
            config=Config.recorded(record["config"]),
            hardware=record.get("environment", {}).get("hardware"),
            finished=(folder / WEIGHTS).exists(),
            progress=progress,
            history=[Epoch.model_validate(row) for row in (progress.history if progress else ())],
            latest=trained[-1] if trained else None,
            of=Description.recorded(record["data_set"]) if "data_set" in record else DESCRIPTION,
            quantised="quantisation" in record,
        )
    except (FileNotFoundError, NotADirectoryError):
        raise TrainingError(f"{folder} holds no run: `python -m training fit` makes one") from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, ValidationError, TrainingError) as error:
        raise TrainingError(f"{folder} holds a damaged run ({str(error).splitlines()[0]})") from None


def render(run: Overview) -> Iterator[RenderableType]:
    """What a terminal shows."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("run", str(run.folder))
    facts.add_row("stands", _standing(run))
    if run.history:
        best = max(run.history, key=lambda row: row.validation_accuracy)
        facts.add_row("best", f"{best.validation_accuracy:.2%} validation accuracy, after epoch {best.epoch}")
    if run.latest:
        facts.add_row(
            "latest",
            "step {step:,} at {time}: loss {train_loss:.3f}, accuracy {train_accuracy:.1%}, "
            "{images_per_second} images/s".format_map(run.latest),
        )
    facts.add_row("network", bundle_name(run.config.architecture, run.of, quantised=run.quantised))
    if run.hardware:
        facts.add_row("device", describe(run.hardware))
    facts.add_row("options", _options(run.config))
    yield facts
    if run.history:
        yield _table(run.history[-ROWS:])
        yield _curves(run.history)


def draw(run: Overview) -> Path:
    """Draw the curve of at least one epoch as a picture in the run's folder. Raises OSError."""
    path = run.folder / CURVE
    write_atomically(path, accuracy_and_loss(run.history))
    return path


def curve(values: Sequence[float]) -> str:
    """The values as blocks of eight heights, at most WIDTH of them."""
    chosen = [values[place * len(values) // WIDTH] for place in range(WIDTH)] if len(values) > WIDTH else values
    low, high = min(values), max(values)
    return "".join(HEIGHTS[round((value - low) / ((high - low) or 1) * (len(HEIGHTS) - 1))] for value in chosen)


def _standing(run: Overview) -> str:
    if run.finished:
        return f"finished, {plural(len(run.history), 'epoch')}"
    if run.progress is None:
        return "begun; nothing is saved yet"
    done = f"{run.progress.epoch} of {plural(run.config.epochs, 'epoch')}"
    return f"{done}, and {plural(run.progress.step, 'step')} of the next, are saved"


def _options(config: Config) -> Text:
    """All of them; those that are not the default in bold."""
    parts = (
        Text(f"{name} {value}", style="" if value == FIELDS[name].default else "bold")
        for name, value in config.as_dict().items()
    )
    return Text(", ").join(parts)


def _table(history: Sequence[Epoch]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("epoch", "rate", "train loss", "accuracy", "valid. loss", "accuracy", "seconds"):
        table.add_column(title, justify="right")
    for row in history:
        losses = (f"{row.train_loss:.4f}", f"{row.train_accuracy:.2%}")
        validation = (f"{row.validation_loss:.4f}", f"{row.validation_accuracy:.2%}")
        table.add_row(str(row.epoch), f"{row.lr:.2g}", *losses, *validation, f"{row.seconds:.0f}")
    return table


def _curves(history: Sequence[Epoch]) -> Table:
    grid = Table.grid(padding=(0, 2))
    losses, accuracies = [row.train_loss for row in history], [row.validation_accuracy for row in history]
    grid.add_row("train loss", curve(losses), f"{losses[0]:.3f} to {losses[-1]:.3f}")
    grid.add_row("valid. accuracy", curve(accuracies), f"{accuracies[0]:.2%} to {accuracies[-1]:.2%}")
    return grid
