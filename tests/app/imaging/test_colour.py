import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from app.bundle.reader import Bundle
from app.imaging.colour import MAX_PROFILE_BYTES, to_srgb
from app.imaging.decode import EncodedImage
from app.imaging.formats import is_tiny
from app.inference.sessions import Session
from tests.app.imaging.icc import SPACES, from_srgb, profile
from tests.conftest import BUNDLE
from training.data.cifar10 import load

COLOURS = np.stack(np.meshgrid(*[np.arange(40, 240, 25)] * 3, indexing="ij"), -1).astype(np.uint8).reshape(16, 32, 3)


def encoded(pixels: np.ndarray, kind: str, icc: bytes | None, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, icc_profile=icc, **options)
    return buffer.getvalue()


def thumbnail(content: bytes, **size: int) -> np.ndarray:
    return EncodedImage.identify(content, 1_000_000).thumbnails(1, **size)[0]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_colours_of_an_embedded_profile_become_srgb(space: str, kind: str, options: dict[str, object]) -> None:
    content = encoded(from_srgb(COLOURS, space), kind, profile(space), **options)
    difference = np.abs(thumbnail(content, height=16, width=32).astype(int) - COLOURS)
    # Few of the 256 values of a linear space are dark ones, and JPEG and AVIF round.
    assert difference.mean() < (2.0 if kind in ("JPEG", "AVIF") else 1.5)
    assert np.abs(from_srgb(COLOURS, space).astype(int) - COLOURS).mean() > 5


def test_transparent_pixels_stay_white() -> None:
    rgba = np.zeros((32, 32, 4), np.uint8)
    assert (thumbnail(encoded(rgba, "PNG", profile("Display P3"))) == 255).all()


@pytest.mark.parametrize(
    "icc",
    [
        None,
        b"",
        b"rubbish",
        profile("ProPhoto")[:200],
        profile("ProPhoto") + bytes(MAX_PROFILE_BYTES),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ],
    ids=["none", "empty", "rubbish", "cut short", "too large", "sRGB", "Lab"],
)
def test_pixels_stay_as_they_are_without_a_usable_profile(icc: bytes | None) -> None:
    pixels = COLOURS[np.newaxis]
    assert to_srgb(pixels, icc) is pixels


def test_a_linear_profile_that_is_called_srgb_is_converted() -> None:
    named = profile("linear").replace(b"desc\0\0\0\0\0\0\0\x07linear", b"desc\0\0\0\0\0\0\0\x07g1sRGB")
    assert named != profile("linear")
    pixels = from_srgb(COLOURS, "linear")[np.newaxis]
    np.testing.assert_array_equal(to_srgb(pixels, named), to_srgb(pixels, profile("linear")))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_profile_for_rgb_does_not_change_other_modes(mode: str) -> None:
    image = Image.fromarray(COLOURS).convert(mode)
    contents = []
    for icc in (None, profile("ProPhoto")):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", icc_profile=icc)
        contents.append(thumbnail(buffer.getvalue()))
    np.testing.assert_array_equal(*contents)


def test_a_picture_with_a_profile_is_not_tiny() -> None:
    """A library in C reads profiles of strangers; it does so in a process of its own."""
    for kind in ("PNG", "JPEG"):
        assert is_tiny(encoded(COLOURS, kind, None))
        assert not is_tiny(encoded(COLOURS, kind, profile("Display P3")))


@pytest.mark.data
def test_the_model_answers_converted_images_like_the_originals(
    cifar10_dir: Path, loaded: tuple[Bundle, Session]
) -> None:
    def labels(images: np.ndarray) -> np.ndarray:
        return np.concatenate([loaded[1].run(part).logits.argmax(1) for part in np.split(images, 4)])

    held_out = json.loads((BUNDLE / "split.json").read_text())["calibrate"][:80]
    originals = load(cifar10_dir, train=True, download=False).images[held_out].numpy()
    wanted, found, ignored = labels(originals), [], []
    for space in SPACES:
        stored = from_srgb(originals, space)
        converted = np.stack([thumbnail(encoded(image, "PNG", profile(space))) for image in stored])
        found.append((labels(converted) == wanted).mean())
        ignored.append((labels(stored) == wanted).mean())
    assert min(found) >= 0.98
    assert np.mean(found) > np.mean(ignored)
