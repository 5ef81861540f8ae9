"""Compare the sizes that our parsers and Pillow find in small JPEGs and PNGs that are made to mislead one of them.

    python -m tests.benchmarks.faults.fuzz_sizes --seconds 100 --seed 5

A file that counts as tiny is decoded in the service itself unless Pillow finds it larger. The exit code is 1 if such a
decode takes more than SLOW_SECONDS, or ends in an error that is no Problem.
"""

import argparse
import io
import random
import time

from PIL import Image

from app.errors import Problem
from app.imaging import png
from app.imaging.decode import EncodedImage
from app.imaging.formats import TINY_PIXELS, is_tiny

SLOW_SECONDS = 0.1  # of a machine that does something else, too; most take less than 1 ms
SMALL, LARGE = ((8, 8), (32, 32), (64, 64), (4096, 1)), (3000, 2000)
# Markers without a segment, reserved ones, and lengths that do not count themselves.
MISLEADING = [
    bytes.fromhex(code) for code in ["fff17f00", "ffc8000d", "ffdc0001", "ffe00000", "fffd0010", "ff020008", "fff70004"]
]


def encoded(size: tuple[int, int], kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(out, kind, **options)
    return out.getvalue()


def frame(content: bytes) -> bytes:
    """The frame header of a JPEG in RGB."""
    start = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    return content[start : start + 19]


def seeds() -> list[bytes]:
    found = [encoded(size, "PNG", optimize=optimize) for size in SMALL for optimize in (False, True)]
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 1}):
        found += [encoded(size, "JPEG", quality=40, **options) for size in SMALL]
    return [content for content in found if is_tiny(content)]


def mutated(content: bytes, others: list[bytes], frames: list[bytes], chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(len(changed))
        what = chance.randrange(4)
        if what == 0:
            changed[place] = chance.randrange(256)
        elif what == 1:
            del changed[place : place + chance.randrange(1, 20)]
        elif what == 2:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            changed[place:place] = other[start : start + chance.randrange(1, 400)]
        elif not content.startswith(png.SIGNATURE):
            place = chance.choice((2, min(place, 300)))
            changed[place:place] = chance.choice(MISLEADING) + chance.choice((b"", *frames))
        changed = changed or bytearray(content)
    return bytes(changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, whole = random.Random(options.seed), seeds()
    frames = [frame(encoded(LARGE, "JPEG", progressive=progressive)) for progressive in (False, True)]
    tried = tiny = decoded = larger = 0
    slowest = 0.0
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        content = mutated(chance.choice(whole), whole, frames, chance)
        tried += 1
        if not is_tiny(content):
            continue
        tiny += 1
        started = time.perf_counter()
        try:
            image = EncodedImage.identify(content, 25_000_000)
            if image.effort > TINY_PIXELS:
                larger += 1
                continue
            image.thumbnails(1)
            decoded += 1
        except Problem:
            pass
        slowest = max(slowest, time.perf_counter() - started)
    print(f"{tried:,} files, {tiny:,} of them tiny by our parsers; {decoded:,} decoded")
    print(f"{larger:,} larger by Pillow: left to a process; the slowest of the others took {slowest * 1000:.1f} ms")
    raise SystemExit(slowest > SLOW_SECONDS)


if __name__ == "__main__":
    main()
