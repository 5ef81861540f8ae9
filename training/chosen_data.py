"""Which images a command works on: CIFAR-10, or with --data a user's own. Options have other defaults for these."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from app.network.mobilenet import SIDE
from training.config import Config
from training.data.cifar10 import Dataset, LabelledImages
from training.data.class_folders import slug
from training.data.data_set import DataSet
from training.data.own_classes import OwnClasses
from training.data.photographs import training_photographs
from training.errors import TrainingError
from training.evaluate.photographs import photograph_side

DATA_DIR, RUN_DIR = Path("data"), Path("runs/mobilenet_v2_cifar10")
TEST_READS = Path("models/test_reads.csv")
# Of a user's own images; a few hundred images or more have the defaults of Config. With 18 and 36 images, networks
# of steps of 8 were right a little more often than those of steps of 4 (47 and 43 %, 49 and 46 %; five seeds).
STEPS_OF_EPOCH, LEAST_BATCH, AVERAGES = 4, 8, 10


def open_data(own: Path | None, data_dir: Path, config: Config, *, download: bool) -> DataSet:
    """Raises TrainingError when the folders of a user's own images are not as they must be; nothing is decoded yet."""
    return Dataset(data_dir, download=download) if own is None else OwnClasses(own, config.input_size)


def photographs_to_train(config: Config, dataset: DataSet, folder: Path | None) -> LabelledImages | None:
    """Those that training sees, of a user's own the pictures of other things; None if it sees none."""
    if dataset.others is not None:
        return dataset.others.training
    if folder is None or not config.photograph_batch:
        return None
    cifar10 = [dataset.training.images, dataset.test.images]
    seen, _ = training_photographs(folder, photograph_side(config.enlarge), cifar10)
    return LabelledImages(seen.images, seen.labels)


def own_config(config: Config, given: Collection[str], images: int, *, others: bool) -> Config:
    """`config` with defaults for a user's own `images` to train on; what was `given` on the command line stays.

    A batch is so small that an epoch has STEPS_OF_EPOCH steps, and weights are averaged so often that a run has
    AVERAGES of them. `others`: each step sees a quarter of a batch of other things, too.
    """
    batch, every = config.batch_size, config.ema_every
    if "batch_size" not in given:
        batch = min(batch, max(LEAST_BATCH, images // STEPS_OF_EPOCH))
    if "ema_every" not in given:
        every = min(every, max(1, config.epochs * (images // batch) // AVERAGES))
    photographs = config.photograph_batch or (max(1, batch // 4) if others else 0)
    return replace(config, batch_size=batch, ema_every=every, photograph_batch=photographs)


def run_folder(run_dir: Path, own: Path | None) -> Path:
    """`run_dir`; instead of the default one with the name of the images, so that runs are in nobody's way."""
    return (
        run_dir if own is None or run_dir != RUN_DIR else RUN_DIR.with_name(f"mobilenet_v2_{slug(own.resolve().name)}")
    )


def reads_log(test_reads: Path, own: Path | None, run_dir: Path) -> Path:
    """`test_reads`; instead of the default, which is the log of CIFAR-10's test images, one in the run's folder."""
    return test_reads if own is None or test_reads != TEST_READS else run_dir / TEST_READS.name


def check_options(own: Path | None, config: Config, **cifar10_only: object) -> None:
    """Raises TrainingError for options that do not go together with a user's own images, or without them."""
    if own is None and config.input_size != SIDE:
        raise TrainingError(f"input_size is {config.input_size}: CIFAR-10's images have {SIDE}, others need --data")
    for name, value in cifar10_only.items():
        if own is not None and value:
            raise TrainingError(f"--{name.replace('_', '-')} is for CIFAR-10: it cannot be used with --data")
