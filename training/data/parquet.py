"""CIFAR-10 as Hugging Face has it, a parquet file a part, where the official archive cannot be had.

    found = read(TRAIN, folder)         # images and labels in the official order; None if the file is not there
    fetch(TRAIN, folder)                # download it; see training.data.archive

The bytes of these files may change, so the pixels and labels are compared with the official ones. The rows are in the
order of the archive's members, which is not that of their numbers: each 10,000 rows are one official batch.
"""

import hashlib
import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.errors import TrainingError

HUB = "https://huggingface.co"
HUB_VARIABLE = "HF_ENDPOINT"  # as huggingface_hub has it: the address of a mirror
BATCH = 10_000  # images
SIDE = 32
ROWS = 1000  # read at once
# What Pillow raises for damaged PNG files.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
MOST_UNPACKED = 1 << 29  # bytes; the training images have a quarter of that


class LabelledPixels(NamedTuple):
    """images: uint8 [N, 32, 32, 3] RGB; labels: int64 [N]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


class NotCifar10(Exception):
    """The file holds something else; the message is a phrase."""


@dataclass(frozen=True)
class ParquetFile:
    """A `training.data.archive.Published`. digests: sha256 of pixels and labels of each official batch, in order."""

    title: str
    name: str
    size: int
    digests: tuple[str, ...]

    @property
    def most(self) -> int:
        return 2 * self.size

    def addresses(self) -> tuple[str, ...]:
        # github.com/flwrlabs/flower/pull/7072 and github.com/yiqiao-yin/deepspeed-course/pull/24 use this data set.
        hub = os.environ.get(HUB_VARIABLE) or HUB
        return (f"{hub.rstrip('/')}/datasets/uoft-cs/cifar10/resolve/main/plain_text/{self.name}",)

    def is_whole(self, path: Path) -> bool:
        try:
            return path.exists() and bool(_read(self, path))
        except NotCifar10:
            return False

    def remedy(self, folder: Path) -> str:
        return f"put {self.name} into {folder}"


TRAIN = ParquetFile(
    title="CIFAR-10's training images",
    name="train-00000-of-00001.parquet",
    size=119_705_255,
    digests=(
        "5c3aa79ef222352f26d831f464b4e498b7ac64504c67e061f0888d2f598eac17",
        "8623c28744fe66bc93881232aa70f8aaf58464c513bf24ec11fdfd4c38494a97",
        "acf6124661f089f92d55359de67d4b8027dbf012b490254fe9095a4fff6ff3ed",
        "894a3fc10589cd2905c03c1da1fb4322a157a63c3cf1126c763c8f79d089d5b6",
        "fe2d07d13456ba4fa93bafc942aafed888109eb86fa15852d9b872761aeb1c74",
    ),
)
TEST = ParquetFile(
    title="CIFAR-10's test images",
    name="test-00000-of-00001.parquet",
    size=23_940_850,
    digests=("e54a434ec35094516eacbaac0f2f9550358d985e9d1f71b47d41d333c15ba304",),
)


def check_parquet() -> None:
    """Raises TrainingError when the package is missing."""
    _parquet()


def read(file: ParquetFile, folder: Path) -> LabelledPixels | None:
    """The images in the file below `folder`; None if it is not there.

    Raises TrainingError when the file holds other images than the official ones, or pyarrow is missing.
    """
    path = folder / file.name
    if not path.exists():
        return None
    try:
        return _read(file, path)
    except NotCifar10 as error:
        raise TrainingError(f"{path} does not hold {file.title} ({error}): delete it") from None


def _read(file: ParquetFile, path: Path) -> LabelledPixels:
    parquet = _parquet()
    found = LabelledPixels(
        np.empty((BATCH * len(file.digests), SIDE, SIDE, 3), np.uint8), np.empty(BATCH * len(file.digests), np.int64)
    )
    try:
        with parquet.ParquetFile(path) as opened:
            _check_shape(opened.metadata, len(found.labels))
            first = 0
            for rows in opened.iter_batches(ROWS, columns=["img.bytes", "label"]):
                last = first + rows.num_rows
                found.labels[first:last] = rows.column("label").to_numpy()
                for place, content in enumerate(rows.column("img").field("bytes"), first):
                    found.images[place] = _pixels(content.as_py())
                first = last
    except NotCifar10:
        raise
    except Exception as error:  # the columns may be of any types, which fail in as many ways
        raise NotCifar10(" ".join(str(error).split())[:200]) from None
    return _in_order(found, file.digests)


def _check_shape(about: Any, images: int) -> None:
    """`about` is the file's metadata."""
    if about.num_rows != images:
        raise NotCifar10(f"{about.num_rows:,} rows, not {images:,}")
    if sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups)) > MOST_UNPACKED:
        raise NotCifar10(f"more than {MOST_UNPACKED:,} bytes of content")


def _pixels(content: object) -> npt.NDArray[np.uint8]:
    if not isinstance(content, bytes):
        raise NotCifar10("a row without an image")
    # Not the service's decoder, whose care for files from anywhere takes ten times as long; these must be small.
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if (image.mode, image.size) != ("RGB", (SIDE, SIDE)):
                raise NotCifar10(f"an image of {image.width:,} x {image.height:,} pixels, {image.mode}")
            return np.asarray(image)
    except BROKEN as error:
        raise NotCifar10(f"a row whose image cannot be used: {error}") from None


def _in_order(found: LabelledPixels, digests: tuple[str, ...]) -> LabelledPixels:
    """The batches in the order of `digests`. Raises NotCifar10 when they are others."""
    batches = [slice(first, first + BATCH) for first in range(0, len(found.labels), BATCH)]
    by_digest = {digest(found.images[batch], found.labels[batch]): batch for batch in batches}
    if by_digest.keys() != set(digests):
        raise NotCifar10("other pixels or labels than the official ones")
    ordered = [by_digest[one] for one in digests]
    return LabelledPixels(*(np.concatenate([part[batch] for batch in ordered]) for part in found))


def digest(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> str:
    """sha256 over pixels and labels."""
    found = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    found.update(labels.astype("<i8").tobytes())
    return found.hexdigest()


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise TrainingError("parquet files need pyarrow: pip install -e '.[parquet]'") from None
    return parquet
