"""Images in WebP mosaics: a data set that is small enough to carry to a machine without a network.

    write_mosaics(folder, "cifar10", images, lossless=True)   # uint8 [N, S, S, 3] -> cifar10_00.webp, cifar10_01.webp …
    read_mosaics(folder, "cifar10", count, side)              # the same tensor again

Lossless WebP takes 54 % of CIFAR-10's raw bytes.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.atomic_files import write_atomically
from training.errors import TrainingError

COLUMNS, ROWS = 50, 50  # images in a mosaic; WebP takes at most 16,383 pixels a side


def write_mosaics(folder: Path, name: str, images: Tensor, *, lossless: bool = True, quality: int = 90) -> list[Path]:
    """Write uint8 images [N, S, S, 3] and return the files. Without `lossless` they have WebP's `quality`."""

    def write(numbered: tuple[int, Tensor]) -> Path:
        number, part = numbered
        content = io.BytesIO()
        Image.fromarray(_mosaic(part)).save(content, "WEBP", lossless=lossless, quality=quality, method=4)
        path = folder / f"{name}_{number:02}.webp"
        write_atomically(path, content.getvalue())
        return path

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        return list(pool.map(write, enumerate(torch.split(images, COLUMNS * ROWS))))


def read_mosaics(folder: Path, name: str, count: int, side: int) -> Tensor:
    """uint8 images [count, side, side, 3]. Raises TrainingError when a file is missing or damaged."""
    sizes = [min(COLUMNS * ROWS, count - first) for first in range(0, count, COLUMNS * ROWS)]

    def read(numbered: tuple[int, int]) -> Tensor:
        number, size = numbered
        path = folder / f"{name}_{number:02}.webp"
        try:
            mosaic = np.asarray(Image.open(path, formats=["WEBP"]).convert("RGB"))
            return torch.from_numpy(np.concatenate(list(_tiles(mosaic, side)))[:size].copy())
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{path} is missing or damaged ({error}): `python -m training pack` writes it"
            ) from None

    with ThreadPoolExecutor() as pool:
        images = torch.cat(list(pool.map(read, enumerate(sizes))))
    if images.shape != (count, side, side, 3):
        raise TrainingError(f"{folder} holds {tuple(images.shape)} of {name}, not {(count, side, side, 3)}")
    return images


def _mosaic(images: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    side = images.shape[1]
    rows = -(-len(images) // COLUMNS)
    canvas = torch.zeros(rows * COLUMNS, side, side, 3, dtype=torch.uint8)
    canvas[: len(images)] = images
    tiled = canvas.reshape(rows, COLUMNS, side, side, 3).permute(0, 2, 1, 3, 4)
    return tiled.reshape(rows * side, COLUMNS * side, 3).numpy()


def _tiles(
    mosaic: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], side: int
) -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """The images [COLUMNS, side, side, 3] of each row."""
    for top in range(0, len(mosaic), side):
        yield mosaic[top : top + side].reshape(side, -1, side, 3).swapaxes(0, 1)
