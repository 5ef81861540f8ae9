"""Decode JPEGs, scaled as the service does, with Pillow and with simplejpeg (pip install simplejpeg): milliseconds.

    python -m tests.benchmarks.serving.jpeg_decoders PHOTO [PHOTO ...] --rounds 15

Both use libjpeg-turbo. Rounds alternate between them; each figure is the median of the rounds.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from app.imaging.decode import REDUCED_SIDE
from tests.benchmarks.serving.peers.load import photo


def pillow(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (REDUCED_SIDE, REDUCED_SIDE))
    return np.asarray(image)


def simple(content: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(content, "RGB", min_height=REDUCED_SIDE, min_width=REDUCED_SIDE)


def quick(content: bytes) -> np.ndarray:
    """With faster, less exact transforms and colours."""
    return simplejpeg.decode_jpeg(
        content, "RGB", fastdct=True, fastupsample=True, min_height=REDUCED_SIDE, min_width=REDUCED_SIDE
    )


def seconds(decode: Callable[[bytes], np.ndarray], contents: list[bytes]) -> float:
    started = time.perf_counter()
    for content in contents:
        decode(content)
    return (time.perf_counter() - started) / len(contents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for name, contents in (
        ("the benchmarks' photo of 3 megapixels", [photo()]),
        (f"{len(options.photos)} photographs", [path.read_bytes() for path in options.photos]),
    ):
        megapixels = statistics.mean(np.prod(Image.open(io.BytesIO(content)).size) for content in contents) / 1e6
        print(f"{name}, {megapixels:.2f} megapixels, {statistics.mean(map(len, contents)) / 1e3:.0f} kB")
        decoders = (pillow, simple, quick)
        rounds = [[1e3 * seconds(decode, contents) for decode in decoders] for _ in range(options.rounds)]
        for decode, times in zip(decoders, zip(*rounds, strict=True), strict=True):
            ratio = statistics.median(one / first for one, (first, *_) in zip(times, rounds, strict=True))
            print(f"  {decode.__name__:8} {statistics.median(times):6.2f} ms, {ratio:.2f} of Pillow's")


if __name__ == "__main__":
    main()
