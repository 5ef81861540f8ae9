"""Images unrelated to the classes (far out-of-distribution): generated from a seed, or Fashion-MNIST."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.errors import TrainingError

Images = npt.NDArray[np.uint8]

FASHION_MNIST = "t10k-images-idx3-ubyte.gz"


def unrelated_images(count: int, seed: int, fashion: Path | None = None, side: int = 32) -> dict[str, Images]:
    """`count` uint8 images [count, side, side, 3] by kind; Fashion-MNIST's first ones if `fashion` is its folder."""
    kinds = {"noise": noise(count, seed, side), "textures": textures(count, seed, side)}
    if fashion is not None:
        kinds["fashion_mnist"] = fashion_mnist(fashion, side)[:count].copy()
    return kinds


def noise(count: int, seed: int, side: int = 32) -> Images:
    """uint8 [count, side, side, 3]: a third each of white noise, of smooth noise, of noise around one colour."""
    random = np.random.default_rng(seed)
    white = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    for index in range(count):
        match index % 3:
            case 1:
                coarse = Image.fromarray(white[index, : 2 + index % 5, : 2 + index % 7])
                white[index] = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
            case 2:
                colour = random.integers(0, 256, 3)
                white[index] = (colour + random.normal(0, 25, (side, side, 3))).clip(0, 255)
    return white


def textures(count: int, seed: int, side: int = 32) -> Images:
    """uint8 [count, side, side, 3]: stripes, checks, rings and waves in two colours, at any angle and scale."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - side / 2
    images = np.empty((count, side, side, 3), np.uint8)
    for index in range(count):
        angle, period = random.uniform(0, np.pi), random.uniform(2, side / 2)
        along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        phase = 2 * np.pi / period
        wave = [
            np.sin(phase * along),
            np.sign(np.sin(phase * along) * np.sin(phase * across)),
            np.sin(phase * np.hypot(x - random.uniform(-9, 9), y - random.uniform(-9, 9))),
            np.sin(phase * along + 2 * np.sin(phase / 2 * across)),
        ][index % 4]
        dark, light = random.integers(0, 256, (2, 3))
        share = (wave[..., None] + 1) / 2
        images[index] = (dark * (1 - share) + light * share + random.normal(0, 4, (side, side, 1))).clip(0, 255)
    return images


def fashion_mnist(folder: Path, side: int = 32) -> Images:
    """uint8 [10000, side, side, 3]: the test images (Xiao et al. 2017, arXiv:1708.07747), padded with their black.

    `folder` holds the official t10k-images-idx3-ubyte.gz. Raises TrainingError when it does not.
    """
    path = folder / FASHION_MNIST
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise TrainingError(f"cannot read {path} ({error}): name the folder that holds it") from None
    if content[:16] != struct.pack(">4i", 2051, 10000, 28, 28) or len(content) != 16 + 10000 * 28 * 28:
        raise TrainingError(f"{path} does not hold the 10,000 test images of Fashion-MNIST")
    grey = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)
    edge = (side - 28) // 2
    padded = np.pad(grey, ((0, 0), (edge, side - 28 - edge), (edge, side - 28 - edge)))
    return np.repeat(padded[..., None], 3, axis=3)
