"""Fuzz the decoder with damaged images of each format, on the way that the service takes.

    python -m tests.benchmarks.faults.fuzz_images --seed 1 --seconds 600

Image n of a run depends only on the seed and n, so `--only n` repeats it. An image is a small valid file with a few
mutations: bits, bytes and interesting numbers changed, pieces removed, repeated, exchanged with another file's, or the
whole compressed data replaced. The run ends with status 1 and names the image if a process crashes, is silent, or runs
out of memory, if an error is not one that clients get, or if an image in a thread of the service takes a second.
"""

import argparse
import asyncio
import io
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from PIL import Image

from app.errors import Problem
from app.imaging.decoder import Decoder
from app.imaging.formats import is_tiny
from app.imaging.job import Images
from app.imaging.limits import Limits
from tests.benchmarks.faults.slowest_pictures import WAYS, scene

FAR = 60.0  # seconds until the deadline of an image
NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
MARKS = [
    *(b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"acTL", b"fdAT", b"fcTL", b"zTXt", b"iCCP", b"eXIf", b"gAMA"),
    *(
        b"\xff\xd8",
        b"\xff\xc0",
        b"\xff\xc2",
        b"\xff\xc4",
        b"\xff\xda",
        b"\xff\xdd",
        b"\xff\xe1",
        b"\xff\xee",
        b"\xff\xd9",
    ),
    *(b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"EXIF", b"RIFF"),
    *(
        b"ftyp",
        b"meta",
        b"iloc",
        b"iinf",
        b"iprp",
        b"ipco",
        b"ispe",
        b"av1C",
        b"ipma",
        b"mdat",
        b"moov",
        b"lsel",
        b"grid",
    ),
    *(b"\x21\xf9", b"\x21\xff", b"\x2c", b"\x3b", b"BM"),
]


def seeds() -> list[tuple[str, bytes]]:
    """Small valid files in each way of tests.benchmarks.faults.slowest_pictures, and animations."""
    found = []
    for pixels in (24 * 32, 90 * 120):
        rgb = scene(pixels, 16)
        for name, kind, options, change in WAYS:
            found.append((f"{name} of {pixels} pixels", encoded(change(rgb), kind, options)))
        frames = {"save_all": True, "append_images": [rgb.rotate(90)]}
        found += [(f"{kind}, two frames", encoded(rgb, kind, frames)) for kind in ("GIF", "PNG", "WEBP", "AVIF")]
    exif = Image.Exif()
    exif[0x112] = 6
    found += [
        (f"{kind}, EXIF", encoded(rgb, kind, {"exif": exif.tobytes()})) for kind in ("JPEG", "PNG", "WEBP", "AVIF")
    ]
    return found


def encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def flip(rng: random.Random, data: bytearray, _: bytes) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def number(rng: random.Random, data: bytearray, _: bytes) -> None:
    """Overwrite with an interesting number of one to eight bytes, in either order."""
    size, place = rng.choice([1, 2, 4, 8]), rng.randrange(len(data))
    value = (rng.choice(NUMBERS) + rng.choice([-1, 0, 0, 1])) % (1 << (8 * size))
    data[place : place + size] = value.to_bytes(size, rng.choice(["big", "little"]))


def mark(rng: random.Random, data: bytearray, _: bytes) -> None:
    """Write a chunk's or a marker's name, over what is there or between."""
    word, place = rng.choice(MARKS), rng.randrange(len(data))
    data[place : place + rng.choice([0, len(word)])] = word


def remove(rng: random.Random, data: bytearray, _: bytes) -> None:
    place = rng.randrange(len(data))
    del data[place : place + rng.randrange(1, 64)]


def repeat(rng: random.Random, data: bytearray, _: bytes) -> None:
    place = rng.randrange(len(data))
    piece = data[place : place + rng.choice([1, 4, 16, 200])]
    data[place:place] = piece * rng.choice([1, 2, 50, 3000 // len(piece) + 1])


def exchange(rng: random.Random, data: bytearray, other: bytes) -> None:
    """Continue with a piece of another file."""
    start, place = rng.randrange(len(other)), rng.randrange(len(data))
    piece = other[start : start + rng.choice([8, 100, 5000])]
    data[place : place + rng.choice([0, len(piece)])] = piece


def cut(rng: random.Random, data: bytearray, _: bytes) -> None:
    del data[rng.randrange(1, len(data) + 1) :]


MUTATIONS: list[Callable[[random.Random, bytearray, bytes], None]] = [
    *(flip, flip, number, number, number, mark, remove, repeat, exchange, cut)
]


def image(seed: int, index: int, files: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """The name of the seed file, and the damaged image."""
    rng = random.Random(f"{seed}/{index}")
    name, content = rng.choice(files)
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        if data:
            rng.choice(MUTATIONS)(rng, data, rng.choice(files)[1])
    return name, bytes(data)


async def try_image(decoder: Decoder, content: bytes, killed: list[str]) -> tuple[str, str | None]:
    """The outcome, and what is wrong with it."""
    started, before = time.monotonic(), len(killed)
    try:
        decoded = await decoder.decode(content, 1, started + FAR, hand_on)
    except Problem as problem:
        outcome = problem.code
    except Exception as error:
        return type(error).__name__, repr(error)
    else:
        outcome = "decoded"
        if decoded.thumbnails.dtype != np.uint8 or decoded.thumbnails.shape[1:] not in ((32, 32, 3), (64, 64, 3)):
            return outcome, f"thumbnails of shape {decoded.thumbnails.shape}"
    reasons = [reason for reason in killed[before:] if reason != "cpu"]
    if reasons:
        return outcome, f"the process ended: {reasons}"
    if is_tiny(content) and time.monotonic() - started > 1:
        return outcome, "a thread of the service took over a second"
    return outcome, None


def hand_on(thumbnails: Images) -> Any:
    done: Future[Images] = Future()
    done.set_result(thumbnails)
    return done


async def run(seed: int, seconds: float, only: int | None) -> bool:
    files, killed, outcomes, good = seeds(), list[str](), Counter[str](), True
    decoder = Decoder(
        processes=1,
        limits=Limits(),
        sizes={"thumbnails": (32, 32), "photographs": (64, 64)},
        on_kill=killed.append,
    )
    end, index = time.monotonic() + seconds, only or 0
    try:
        while time.monotonic() < end:
            name, content = image(seed, index, files)
            outcome, wrong = await try_image(decoder, content, killed)
            outcomes[outcome] += 1
            if wrong:
                good = False
                print(f"image {index}, made from {name}, {len(content)} bytes: {outcome}: {wrong}", flush=True)
            if only is not None:
                break
            index += 1
    finally:
        decoder.close()
    print(f"{sum(outcomes.values())} images: {dict(outcomes)}; ended for their CPU time: {killed.count('cpu')}")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", type=int, metavar="N", help="only this image")
    options = parser.parse_args()
    raise SystemExit(0 if asyncio.run(run(options.seed, options.seconds, options.only)) else 1)


if __name__ == "__main__":
    main()
