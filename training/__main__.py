"""The training command line.

python -m training all                           # fit, evaluate, export: models/mobilenet_v2_cifar10
python -m training fit --epochs 6 --run-dir runs/six
python -m training evaluate --run-dir runs/six
python -m training export --run-dir runs/six --force
"""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from training.config import Config
from training.data import LabelledImages, load, split
from training.fit import Run, cores
from training.problems import TrainingError
from training.progress import ProgressBar

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

DEFAULTS = Config()
DataDir = Annotated[Path, typer.Option(envvar="CIFAR10_DIR", help="Holds cifar-10-batches-py, or will.")]
RunDir = Annotated[Path, typer.Option(help="Where the run lives; the same folder resumes it.")]
Init = Annotated[str, typer.Option(help="imagenet, random, or a safetensors file with torchvision's names.")]
Download = Annotated[bool, typer.Option(help="Fetch CIFAR-10 when it is missing.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads that compute; the bits depend on it.")]


@cli.command()
def fit(
    data_dir: DataDir = Path("data"),
    run_dir: RunDir = Path("runs/mobilenet_v2_cifar10"),
    init: Init = "imagenet",
    download: Download = True,
    threads: Threads = cores(),
    epochs: int = DEFAULTS.epochs,
    batch_size: int = DEFAULTS.batch_size,
    lr: float = DEFAULTS.lr,
    weight_decay: float = DEFAULTS.weight_decay,
    label_smoothing: float = DEFAULTS.label_smoothing,
    shift: int = DEFAULTS.shift,
    cutout: int = DEFAULTS.cutout,
    stem_stride: int = DEFAULTS.stem_stride,
    stage2_stride: Annotated[int, typer.Option(help="1: 88 M multiply-adds; 2: 24.5 M.")] = DEFAULTS.stage2_stride,
    seed: int = DEFAULTS.seed,
) -> None:
    """Train, or go on training: a run that was killed continues where it was."""
    config = Config(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        shift=shift,
        cutout=cutout,
        stem_stride=stem_stride,
        stage2_stride=stage2_stride,
        seed=seed,
    )
    torch.set_num_threads(threads)
    train, select = _training_data(data_dir, download, config)
    run = Run(run_dir, config, init, train, select)
    with ProgressBar(Console(stderr=True)) as watch:
        run.fit(watch)


def _training_data(data_dir: Path, download: bool, config: Config) -> tuple[LabelledImages, LabelledImages]:
    images = load(data_dir, train=True, download=download)
    parts = split(images.labels, config.split_seed)
    return images.take(parts.train), images.take(parts.select)


def main() -> None:
    try:
        cli()
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
