"""CPU time of decoding the slowest ordinary pictures: as many pixels as the service accepts, in each format.

    python -m tests.benchmarks.faults.slowest_pictures

Pillow encodes a gradient with noise, in the ways of a format that are slow to decode: with as much noise as the bytes
of a file allow. Goal: each takes less than half of MAX_DECODE_SECONDS, so that no ordinary picture is refused on a
machine of half the speed. The median of three runs in a decoding process counts.
"""

import argparse
import io
import statistics
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.imaging.limits import Limits
from app.imaging.process import DecodingProcess
from app.settings import Settings

SHARES = {"AVIF": 0.6, "WEBP": 0.33}  # of MAX_PIXELS: their decoders need more memory for a pixel
TICKS_PER_SECOND = 100  # of /proc/PID/stat


def scene(pixels: int, noise: int) -> Image.Image:
    """A picture in RGB: a gradient with normal noise of this standard deviation."""
    waves, grain = _waves_and_grain(pixels)
    return Image.fromarray((waves + noise * grain).clip(0, 255).astype(np.uint8))


@lru_cache(1)
def _waves_and_grain(pixels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    width, height = int((pixels * 4 / 3) ** 0.5), int((pixels * 3 / 4) ** 0.5)
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = np.stack([np.sin(across / 91) + np.cos(down / 47), np.sin(down / 31), np.cos(across / 17)], axis=-1)
    return 128 + 40 * waves, np.random.default_rng(0).standard_normal(waves.shape, dtype=np.float32)


def with_alpha(rgb: Image.Image) -> Image.Image:
    clear = rgb.convert("RGBA")
    clear.putalpha(rgb.convert("L"))
    return clear


def deep(rgb: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)


# Name, format, Pillow's options, and what becomes of the picture first.
WAYS: list[tuple[str, str, dict[str, Any], Callable[[Image.Image], Image.Image]]] = [
    ("JPEG, baseline", "JPEG", {"quality": 95, "subsampling": 0}, lambda rgb: rgb),
    ("JPEG, progressive", "JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, lambda rgb: rgb),
    ("JPEG, CMYK", "JPEG", {"quality": 95}, lambda rgb: rgb.convert("CMYK")),
    ("PNG", "PNG", {"compress_level": 1}, lambda rgb: rgb),
    ("PNG with alpha", "PNG", {"compress_level": 1}, with_alpha),
    ("PNG of 16 bits", "PNG", {"compress_level": 1}, deep),
    ("WebP", "WEBP", {"quality": 95, "method": 0}, lambda rgb: rgb),
    ("WebP with alpha", "WEBP", {"quality": 95, "method": 0}, with_alpha),
    ("WebP, lossless", "WEBP", {"lossless": True, "quality": 0, "method": 0}, lambda rgb: rgb),
    ("GIF", "GIF", {"interlace": 1}, lambda rgb: rgb.quantize(256)),
    ("BMP of one bit", "BMP", {}, lambda rgb: rgb.convert("1")),
    ("AVIF", "AVIF", {"quality": 90, "speed": 10, "subsampling": "4:4:4"}, lambda rgb: rgb),
    ("AVIF with alpha", "AVIF", {"quality": 90, "speed": 10, "subsampling": "4:4:4"}, with_alpha),
]


def pictures(pixels: int, most_bytes: int) -> Iterator[tuple[str, int, bytes]]:
    """Names, noise and files, each with the most noise with which it has at most `most_bytes`."""
    for name, kind, options, change in WAYS:
        share = int(pixels * SHARES.get(kind, 1))
        for noise in (32, 8, 2, 0):
            out = io.BytesIO()
            change(scene(share, noise)).save(out, kind, **options)
            if out.tell() <= most_bytes:
                yield name, noise, out.getvalue()
                break


def cpu_seconds(pid: int) -> float:
    """CPU time that the process has taken, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def measure(content: bytes, max_pixels: int, runs: int = 3) -> float:
    """CPU seconds of decoding: the median of runs."""
    process = DecodingProcess(memory_bytes=Limits(max_pixels).memory_bytes, cpu_seconds=60.0)
    taken = []
    try:
        for _ in range(runs):
            before = cpu_seconds(process.pid)
            process.identify(content, max_pixels)
            process.thumbnails(1, 64, 64)
            taken.append(cpu_seconds(process.pid) - before)
    finally:
        process.end()
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    settings = Settings(_env_file=None)
    limit, kept = settings.max_decode_seconds / 2, True
    print("| picture | noise | MB | CPU s | goal |\n| --- | --- | --- | --- | --- |")
    for name, noise, content in pictures(settings.max_pixels, settings.max_file_bytes):
        taken = measure(content, settings.max_pixels)
        kept = kept and taken < limit
        verdict = "met" if taken < limit else "MISSED"
        print(f"| {name} | {noise} | {len(content) / 1e6:.1f} | {taken:.2f} | {verdict} |", flush=True)
    raise SystemExit(0 if kept else 1)


if __name__ == "__main__":
    main()
