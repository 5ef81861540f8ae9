"""Every format, mode and trick that an upload can be made of. All images are generated here."""

import io
import pickle
import random
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, PngImagePlugin

from app.errors import ImageTooLarge, Problem, UndecodableImage, UnsupportedMediaType
from app.imaging import avif
from app.imaging import decode as images
from app.imaging.decode import EncodedImage

# As in production, where app.imaging.decode has Python ignore what Pillow warns of.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

MAX_PIXELS = 25_000_000
ORIENTATION = 0x0112
WHITE = (255, 255, 255)
needs_avif = pytest.mark.skipif("AVIF" not in images.DECODERS, reason="this Pillow has no AVIF decoder")


def thumbnails(content: bytes, views: int = 1, **size: int) -> np.ndarray:
    return EncodedImage.identify(content, MAX_PIXELS).thumbnails(views, **size)


def thumbnail(content: bytes) -> np.ndarray:
    return thumbnails(content)[0]


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def picture(width: int = 32, height: int = 32, detail: int = 4) -> Image.Image:
    """No two corners alike: smooth colours and a grating."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / width, 255 * y / height
    blue = 128 + 80 * np.sin(detail * x / width * np.pi) * np.cos(y / height)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def noise(width: int = 32, height: int = 32, channels: int = 3) -> Image.Image:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def halves(left: Any, right: Any, mode: str, size: int = 32) -> Image.Image:
    image = Image.new(mode, (size, size), left)
    image.paste(right, (size // 2, 0, size, size))
    return image


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write. Each row starts with its filter, 0."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND")


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">HH", marker, len(data) + 2) + data


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


SAMPLES = {
    "JPEG": encode(picture(48, 40), "JPEG", exif=exif(6)),
    "progressive JPEG": encode(picture(48, 40), "JPEG", progressive=True),
    "CMYK JPEG": encode(picture(48, 40).convert("CMYK"), "JPEG"),
    "PNG": encode(picture(48, 40), "PNG", exif=exif(6)),
    "palette PNG": encode(picture(48, 40).quantize(64), "PNG", transparency=3),
    "16-bit PNG": encode(Image.fromarray(np.arange(40 * 48, dtype=np.uint16).reshape(40, 48) * 34), "PNG"),
    "APNG": encode(picture(48, 40), "PNG", save_all=True, append_images=[noise(48, 40)]),
    "GIF": encode(picture(48, 40).quantize(64), "GIF", save_all=True, append_images=[noise(48, 40)]),
    "WebP": encode(picture(48, 40), "WEBP"),
    "lossless WebP": encode(noise(48, 40, 4), "WEBP", lossless=True, exif=exif(6)),
    "animated WebP": encode(picture(48, 40), "WEBP", save_all=True, append_images=[noise(48, 40)]),
    "BMP": encode(picture(48, 40), "BMP"),
}
if "AVIF" in images.DECODERS:
    SAMPLES["AVIF"] = encode(picture(48, 40), "AVIF", exif=exif(6), max_threads=1)
    SAMPLES["animated AVIF"] = encode(
        picture(48, 40), "AVIF", save_all=True, append_images=[noise(48, 40)], max_threads=1
    )


# What comes out


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (noise(), "PNG", {}),
        (noise(), "BMP", {}),
        (noise(), "WEBP", {"lossless": True}),
        (noise(channels=1), "PNG", {}),
        (noise(channels=1), "GIF", {}),
        (noise().quantize(200), "PNG", {}),
        (noise().quantize(200), "GIF", {}),
        (noise().convert("RGBA"), "PNG", {}),
        (noise().convert("1"), "PNG", {}),
        (noise().convert("1"), "BMP", {}),
        (noise().convert("LA"), "PNG", {}),
    ],
)
def test_a_32x32_image_reaches_the_network_bit_for_bit(image: Image.Image, kind: str, options: dict[str, Any]) -> None:
    result = thumbnails(encode(image, kind, **options), views=3)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, np.asarray(image.convert("RGB"))[np.newaxis])


@pytest.mark.parametrize(("size", "views"), [((1, 1), 1), ((63, 63), 1), ((63, 20), 1), ((64, 64), 3), ((20, 64), 3)])
def test_less_than_64_pixels_on_both_sides_is_one_view(size: tuple[int, int], views: int) -> None:
    image = EncodedImage.identify(encode(picture(*size), "PNG"), MAX_PIXELS)
    assert image.view_count(3) == views
    assert image.thumbnails(3).shape == (views, 32, 32, 3)
    assert image.view_count(1) == 1
    assert image.thumbnails(1).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (1201, 1043), (2000, 300)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("JPEG", {"quality": 95}), ("JPEG", {"quality": 95, "progressive": True})],
)
def test_views_are_squash_square_and_centre_as_if_resized_in_one_step(
    size: tuple[int, int], kind: str, options: dict[str, Any]
) -> None:
    image, (width, height) = picture(*size, detail=12), size
    result = thumbnails(encode(image, kind, **options), views=3).astype(int)
    for view, (w, h) in zip(result, [size, (min(size), min(size)), (0.7 * width, 0.7 * height)], strict=True):
        box = ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)
        expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR, box))
        assert np.abs(view - expected).max() <= 3
        assert np.abs(view - expected).mean() < 0.7
    np.testing.assert_array_equal(thumbnails(encode(image, kind, **options), views=1)[0], result[0])


def test_large_images_in_other_modes_shrink_as_rgb_does() -> None:
    """Bands of the image are converted and shrunk; no seam shows."""
    image = picture(1050, 1030)
    expected = thumbnails(encode(image, "PNG"), views=3)
    for other in (image.convert("RGBA"), image.convert("RGBA").crop((0, 0, 1050, 1030))):
        difference = thumbnails(encode(other, "PNG", compress_level=1), views=3).astype(int) - expected
        assert np.abs(difference).max() == 0
    grey = thumbnails(encode(image.convert("L"), "PNG"), views=3).astype(int)
    assert np.abs(grey - thumbnails(encode(image.convert("L").convert("RGB"), "PNG"), views=3)).max() == 0


def test_thumbnails_may_have_another_size() -> None:
    image = picture(90, 70)
    result = thumbnails(encode(image, "PNG"), height=16, width=24)
    expected = np.asarray(image.resize((24, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(result[0], expected)


# Orientation

STORED_AS = {orientation: method for orientation, method in images.TRANSPOSITIONS.items() if orientation not in (6, 8)}
STORED_AS |= {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}  # the others undo themselves


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        pytest.param("AVIF", {"quality": 95, "max_threads": 1}, marks=needs_avif),
    ],
)
def test_all_eight_orientations_give_the_same_thumbnails(orientation: int, kind: str, options: dict[str, Any]) -> None:
    upright = picture(96, 80)
    stored = upright.transpose(STORED_AS[orientation]) if orientation in STORED_AS else upright
    expected = thumbnails(encode(upright, "PNG"), views=3, height=16, width=24).astype(int)
    content = encode(stored, kind, exif=exif(orientation), **options)
    result = thumbnails(content, views=3, height=16, width=24)
    # Resizing rounds after the rows and again after the columns: swapped, they differ by one here and there.
    assert np.abs(result - expected).max() <= (1 if kind in ("PNG", "WEBP") else 6)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_invalid_orientation_counts_as_upright(value: Any) -> None:
    tags = Image.Exif()
    tags[ORIENTATION] = value
    np.testing.assert_array_equal(thumbnail(encode(picture(), "PNG", exif=tags)), thumbnail(encode(picture(), "PNG")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "data", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_an_image_with_corrupt_metadata_is_decoded(kind: str, data: bytes) -> None:
    np.testing.assert_array_equal(thumbnail(encode(picture(), kind, exif=data)), thumbnail(encode(picture(), kind)))


# Transparency, in every way that a format can say it

HIDDEN = (250, 0, 120)
SEEN = (10, 60, 200)


def two_greys(depth: int, seen: int, hidden: int) -> bytes:
    """A grey PNG of any depth: left half seen, right half hidden by tRNS."""
    bits = "".join(f"{value:0{depth}b}" * 16 for value in (seen, hidden))
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8)
    return png(32, 32, depth, 0, row * 32, chunk(b"tRNS", struct.pack(">H", hidden)))


def rgba_halves(kind: str, **options: Any) -> bytes:
    return encode(halves((*SEEN, 255), (*HIDDEN, 0), "RGBA"), kind, **options)


def bmp_with_alpha(image: Image.Image) -> bytes:
    """With the header that has a mask for alpha; Pillow writes the older one."""
    data = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes("raw", "BGRA")
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, *image.size, 1, 32, 3, len(data), 0, 0, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 122 + len(data), 0, 0, 122) + header.ljust(108, b"\0") + data


def palette_halves() -> Image.Image:
    image = halves(0, 1, "P")
    image.putpalette([*SEEN, *HIDDEN])
    return image


def deep_colours() -> bytes:
    seen, hidden = (struct.pack(">3H", *(256 * value + 7 for value in colour)) for colour in (SEEN, HIDDEN))
    return png(32, 32, 16, 2, (b"\0" + seen * 16 + hidden * 16) * 32, chunk(b"tRNS", hidden))


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        pytest.param(rgba_halves("PNG"), SEEN, id="RGBA PNG"),
        pytest.param(bmp_with_alpha(halves((*SEEN, 255), (*HIDDEN, 0), "RGBA")), SEEN, id="RGBA BMP"),
        pytest.param(rgba_halves("WEBP", lossless=True, exact=True), SEEN, id="WebP"),
        pytest.param(encode(halves((40, 255), (200, 0), "LA"), "PNG"), (40, 40, 40), id="LA"),
        pytest.param(encode(palette_halves(), "PNG", transparency=1), SEEN, id="P, one transparent entry"),
        pytest.param(encode(palette_halves(), "PNG", transparency=b"\xff\x00"), SEEN, id="P, alphas"),
        pytest.param(encode(palette_halves(), "GIF", transparency=1), SEEN, id="GIF"),
        pytest.param(encode(halves(SEEN, HIDDEN, "RGB"), "PNG", transparency=HIDDEN), SEEN, id="RGB with tRNS"),
        pytest.param(deep_colours(), SEEN, id="16-bit RGB with tRNS"),
        pytest.param(two_greys(1, 0, 1), (0, 0, 0), id="1 bit with tRNS"),
        pytest.param(two_greys(2, 1, 2), (85, 85, 85), id="2 bits with tRNS"),
        pytest.param(two_greys(4, 1, 2), (17, 17, 17), id="4 bits with tRNS"),
        pytest.param(two_greys(8, 40, 200), (40, 40, 40), id="L with tRNS"),
        pytest.param(two_greys(16, 40 * 257, 200 * 257), (40, 40, 40), id="16 bits with tRNS"),
    ],
)
def test_transparent_pixels_become_white(content: bytes, seen: tuple[int, int, int]) -> None:
    result = thumbnail(content)
    assert (result[:, :16] == seen).all()
    assert (result[:, 16:] == WHITE).all()


@needs_avif
def test_transparent_pixels_of_an_avif_become_white() -> None:
    result = thumbnail(rgba_halves("AVIF", quality=90, max_threads=1)).astype(int)
    assert np.abs(result[:, :14] - SEEN).max() < 12
    assert np.abs(result[:, 18:] - WHITE).max() < 3


def test_half_transparent_pixels_become_half_white() -> None:
    result = thumbnail(encode(Image.new("RGBA", (32, 32), (0, 100, 255, 128)), "PNG"))
    assert np.abs(result.astype(int) - (127, 177, 255)).max() <= 1


@pytest.mark.parametrize("size", [48, 1100])
def test_hidden_colours_do_not_bleed_into_seen_ones(size: int) -> None:
    image = halves((*WHITE, 255), (255, 0, 0, 0), "RGBA", size)
    image.paste((255, 0, 0, 0), (5, 5, 6, 6))
    assert (thumbnails(encode(image, "PNG"), views=3) == 255).all()


# Colour modes


def test_cmyk_as_adobe_writes_it_and_as_the_standard_does() -> None:
    colours = {"cyan": (0, 255, 255), "yellow": (255, 255, 0), "black": (0, 0, 0)}
    for cmyk, rgb in zip([(255, 0, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)], colours.values(), strict=True):
        image = Image.new("CMYK", (32, 32), cmyk)
        adobe = encode(image, "JPEG", quality=95)
        plain = encode(ImageChops.invert(image), "JPEG", quality=95)  # Pillow inverts when it writes
        start = plain.index(b"\xff\xee\x00\x0eAdobe")
        plain = plain[:start] + plain[start + 16 :]
        for content in (adobe, plain):
            assert np.abs(thumbnail(content).astype(int) - rgb).max() <= 2


def test_a_ycck_jpeg_has_its_colours() -> None:
    """Adobe's other CMYK: its transform is 2, and libjpeg gives CMYK of it."""
    content = encode(Image.new("CMYK", (32, 32), (0, 0, 0, 255)), "JPEG", quality=95)
    start = content.index(b"Adobe")
    ycck = content[: start + 11] + b"\2" + content[start + 12 :]
    assert thumbnail(ycck).shape == (32, 32, 3)


def test_sixteen_bit_greys_are_scaled_not_clipped() -> None:
    grey = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    result = thumbnail(encode(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(result, np.stack([grey >> 8] * 3, axis=-1))


def test_sixteen_bit_colours_agree_with_greys() -> None:
    grey = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in grey)
    deep_grey = encode(Image.fromarray(grey), "PNG")
    np.testing.assert_array_equal(thumbnail(png(32, 32, 16, 2, rows)), thumbnail(deep_grey))


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 70, (70, 70, 70)),
        ("I", 70 * 257, (70, 70, 70)),
        ("I", 1_000_000, WHITE),
        ("I", -5, (0, 0, 0)),
        ("I;16", 70 * 257, (70, 70, 70)),
        ("I;16B", 70 * 257, (70, 70, 70)),
        ("F", 70.0, (70, 70, 70)),
        ("F", 300.0, WHITE),
        ("YCbCr", (70, 128, 128), (70, 70, 70)),
        ("PA", (0, 255), (0, 0, 0)),
        ("RGBa", (10, 20, 30, 255), (10, 20, 30)),
    ],
)
def test_every_mode_of_pillow_becomes_rgb(mode: str, value: Any, expected: tuple[int, int, int]) -> None:
    """Also those that none of today's decoders gives."""
    result = images._on_white(images._flatten(Image.new(mode, (2, 2), value)))
    assert (result == expected).all()


# Several pictures in a file


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("GIF", {}),
        ("PNG", {}),
        ("PNG", {"default_image": True}),
        ("WEBP", {"lossless": True}),
        pytest.param("AVIF", {"max_threads": 1}, marks=needs_avif),
        ("MPO", {}),
    ],
)
def test_the_first_frame_of_an_animation_is_decoded(kind: str, options: dict[str, Any]) -> None:
    red, *others = (Image.new("RGB", (80, 70), colour) for colour in ("red", "lime", "blue"))
    content = encode(red, kind, save_all=True, append_images=others, **options)
    assert np.abs(thumbnails(content, views=3).astype(int) - (255, 0, 0)).max() <= 2


def test_a_gif_frame_beyond_its_screen_counts_with_its_own_size() -> None:
    content = bytearray(encode(picture(48, 40).quantize(8), "GIF"))
    content[6:10] = struct.pack("<HH", 1, 1)
    image = EncodedImage.identify(bytes(content), MAX_PIXELS)
    assert (image.width, image.height) == (48, 40)


# Damage


@pytest.mark.parametrize("name", [name for name in SAMPLES if "anim" not in name and name not in ("GIF", "APNG")])
def test_an_image_that_is_cut_short_is_refused(name: str) -> None:
    content = SAMPLES[name]
    for percent in range(5, 90, 5):  # the rest may hold no pixels
        with pytest.raises(UndecodableImage, match="cut short or corrupt"):
            thumbnails(content[: max(16, len(content) * percent // 100)])


@pytest.mark.parametrize("name", SAMPLES)
def test_an_image_cut_short_anywhere_is_refused_or_complete(name: str) -> None:
    """Whole, if only later frames or the mark of the end are missing."""
    content = SAMPLES[name]
    whole = thumbnail(content)
    turned = [whole, np.rot90(whole)] if "WebP" in name else [whole]  # as it is stored, if its EXIF is cut short
    for length in {*random.Random(0).sample(range(len(content)), 40), len(content) - 1}:
        try:
            result = thumbnail(content[:length])
        except Problem:
            continue
        assert any(np.array_equal(result, one) for one in turned), length


@pytest.mark.parametrize("name", ["PNG", "palette PNG", "16-bit PNG"])
def test_a_flipped_bit_anywhere_in_a_png_is_noticed_or_changes_no_pixel(name: str) -> None:
    content = SAMPLES[name]
    # A damaged orientation is left out, so the picture may come as it is stored.
    stored = [thumbnail(content), thumbnail(content.replace(b"eXIf", b"tEXt"))]
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        try:
            found = thumbnail(bytes(damaged))
        except Problem:
            continue
        assert any((found == one).all() for one in stored), position


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(UndecodableImage, match="the image is empty"):
        thumbnails(b"")


@pytest.mark.parametrize("magic", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP"])
@pytest.mark.parametrize("rest", [b"", b"\0" * 100, b"\xff" * 100, bytes(range(256))])
def test_magic_bytes_alone_are_no_image(magic: bytes, rest: bytes) -> None:
    with pytest.raises((UndecodableImage, ImageTooLarge)):
        thumbnails(magic + rest)


@pytest.mark.parametrize(
    ("error", "problem"),
    [(kind, UndecodableImage) for kind in (OSError, SyntaxError, ValueError, struct.error, EOFError, IndexError)]
    + [(kind, UndecodableImage) for kind in (TypeError, KeyError, AssertionError, OverflowError, ZeroDivisionError)]
    + [(kind, UndecodableImage) for kind in (zlib.error, SystemError, AttributeError, RecursionError, UserWarning)]
    + [(kind, ImageTooLarge) for kind in (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning)],
)
def test_every_error_of_pillow_becomes_a_problem_without_its_message(
    error: type[Exception], problem: type[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error("<object at 0x7f0000000000> in /etc/secret")

    image = EncodedImage.identify(SAMPLES["PNG"], MAX_PIXELS)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(problem) as caught:
        image.thumbnails(1)
    assert "0x" not in caught.value.detail
    assert "/" not in caught.value.detail


# What is not decoded


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (encode(picture(), "TIFF"), "TIFF"),
        (encode(picture(), "EPS"), "PostScript"),
        (encode(picture(), "PDF"), "PDF"),
        (encode(picture(), "JPEG2000"), "JPEG 2000"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG or XML"),
        (b"\xef\xbb\xbf\n <?xml version='1.0'?><svg/>", "SVG or XML"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (encode(picture(), "PPM"), "no image format"),
        (encode(picture(), "TGA"), "no image format"),
        (encode(picture(), "ICO"), "no image format"),
        (b"SIMPLE  =                    T", "no image format"),
        (b"a cat, in words", "no image format"),
        (b"\0", "no image format"),
    ],
)
def test_other_formats_are_refused_by_name(content: bytes, name: str) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        thumbnails(content)
    assert caught.value.detail.startswith(f"this is {name}")
    assert "; accepted are JPEG, PNG, WEBP, GIF, BMP" in caught.value.detail


def test_a_file_of_two_formats_is_what_it_begins_with() -> None:
    assert EncodedImage.identify(SAMPLES["GIF"] + SAMPLES["PNG"], MAX_PIXELS).format == "GIF"
    with pytest.raises(UndecodableImage):
        thumbnails(b"GIF89a" + SAMPLES["PNG"])


# Bombs


@cache
def oversized() -> dict[str, bytes]:
    """Small files that declare far more pixels than are accepted."""
    size = struct.pack(">HH", 65_000, 65_000)
    jpeg, gif, bmp = (bytearray(SAMPLES[name]) for name in ("JPEG", "GIF", "BMP"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = size
    gif[6:10] = size
    bmp[18:26] = struct.pack("<ii", 20_000, 20_000)
    webp = bytearray(SAMPLES["animated WebP"])
    webp[24:30] = (9_999).to_bytes(3, "little") * 2
    bombs = {
        "PNG of 100 megapixels": png(10_000, 10_000, 1, 0, bytes(1_251 * 10_000)),
        "JPEG": bytes(jpeg),
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
        "WebP": bytes(webp),
    }
    if "AVIF" in images.DECODERS:
        bombs["AVIF"] = lying_avif((20_000, 10_000), picture(48, 40))
    return bombs


def lying_avif(size: tuple[int, int], image: Image.Image) -> bytes:
    """Declares one size in its container, while its AV1 stream has another."""
    content = encode(image, "AVIF", max_threads=1)
    start = content.index(b"ispe") + 8
    return content[:start] + struct.pack(">II", *size) + content[start + 8 :]


@pytest.mark.parametrize(("name", "content"), oversized().items(), ids=oversized())
def test_too_many_pixels_are_refused(name: str, content: bytes) -> None:
    most = "15,000,000" if name == "AVIF" else "25,000,000"
    with pytest.raises(ImageTooLarge, match=f"accepted are {most} pixels and 10,000 on a side"):
        EncodedImage.identify(content, MAX_PIXELS)


WARNED = """
import sys
from PIL import Image
from app.imaging.decode import EncodedImage
from app.errors import ImageTooLarge

Image.MAX_IMAGE_PIXELS = 1_000  # up to twice as many Pillow only warns
try:
    EncodedImage.identify(sys.stdin.buffer.read(), 25_000_000).thumbnails(1)
except ImageTooLarge as problem:
    print(problem.detail)
"""


def test_a_warning_of_a_bomb_is_an_error() -> None:
    """In a process of its own: pytest makes errors of all warnings."""
    content = bytearray(encode(Image.new("P", (40, 40)), "GIF"))
    content[6:10] = struct.pack("<HH", 4, 4)  # its screen; the frame is larger
    root = Path(images.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", WARNED], input=content, capture_output=True, cwd=root, check=True)
    assert done.stdout == b"the GIF takes more memory to decode than is allowed\n"


def test_limits_are_inclusive() -> None:
    content = encode(Image.new("1", (10_000, 2)), "PNG")
    assert EncodedImage.identify(content, 20_000).pixels == 20_000
    with pytest.raises(ImageTooLarge):
        EncodedImage.identify(content, 19_999)
    with pytest.raises(ImageTooLarge):
        EncodedImage.identify(encode(Image.new("1", (10_001, 1)), "PNG"), 20_000)


@needs_avif
def test_an_avif_is_as_large_as_its_streams_say() -> None:
    """The decoder allocates their frames, whatever the container declares."""
    image = Image.new("RGB", (600, 500))
    content = lying_avif((32, 32), image)
    assert EncodedImage.identify(content, MAX_PIXELS).pixels == 5 * 300_000
    with pytest.raises(ImageTooLarge, match="300,000 pixels"):
        EncodedImage.identify(content, 200_000)
    animated = encode(image, "AVIF", save_all=True, append_images=[picture(600, 500)], max_threads=1)
    for brand in (b"avis", b"mif1", b"msf1"):
        content = animated[:8] + brand + animated[12:]
        assert EncodedImage.identify(content, MAX_PIXELS).pixels == 5 * 300_000
        assert images._open("AVIF", content).n_frames == 1  # its video track is left alone


def test_av1_streams_are_found_wherever_a_container_may_keep_them() -> None:
    def box(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I4s", len(data) + 8, kind) + data

    # A sequence header of 640 x 480 in full: one operating point of level 8 with a delay, no timing.
    fields = "000 1 0 0 1 00000 000000000000 01000 0 1 0000 1001 1000 1001111111 111011111"
    bits = fields.replace(" ", "").ljust(80, "0")
    header = int(bits, 2).to_bytes(10)
    stream = b"\x12\x00" + b"\x0e\x00\x8a\x00" + header + b"\x32\x01\x00"  # an extension; a size in two bytes
    for version in (1, 2):
        number = ">I" if version == 2 else ">H"
        item = struct.pack(number, 1) + struct.pack(">HHIH", 1, 0, 2, 2)
        extents = struct.pack(">HH", 0, 5) + struct.pack(">HH", 5, len(stream) - 5)
        iloc = bytes([version, 0, 0, 0, 0x22, 0x40]) + struct.pack(number, 1) + item + extents
        meta = bytes(4) + box(b"idat", b"__" + stream) + box(b"iloc", iloc)
        content = box(b"ftyp", b"avif") + box(b"meta", meta)
        assert avif.largest_av1_frame(content) == 640 * 480
        overlapping = content.replace(struct.pack(">HH", 0, 5), struct.pack(">HH", 0, 500))
        with pytest.raises(ValueError, match="overlap"):
            avif.largest_av1_frame(overlapping)


def test_a_malformed_avif_is_refused() -> None:
    """Timing belongs to videos; a box without a size goes on to the end of a file."""
    with pytest.raises(ValueError, match="timing"):
        list(avif._av1_frames(b"\x0a\x02\x04\x00"))
    with pytest.raises(ValueError, match="without a size"):
        avif._iso_box(bytes(4) + b"ftyp" + bytes(100), b"meta")


def jpeg_with_scans(count: int) -> bytes:
    content = encode(picture(48, 40), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * (count - content.count(b"\xff\xda")) + content[-2:]


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    """A few bytes make each of them go over the whole picture."""
    assert thumbnail(jpeg_with_scans(60)).shape == (32, 32, 3)
    with pytest.raises(UndecodableImage):
        EncodedImage.identify(jpeg_with_scans(100), MAX_PIXELS)


def test_exif_segments_after_the_first_are_not_joined_to_it() -> None:
    upright, tags = encode(picture(), "JPEG"), exif(6).tobytes()
    turned = upright[:2] + segment(0xFFE1, tags) + segment(0xFFE1, b"Exif\0\0" + bytes(10)) * 1_000 + upright[2:]
    in_pieces = upright[:2] + segment(0xFFE1, tags[:16]) + segment(0xFFE1, b"Exif\0\0" + tags[16:]) + upright[2:]
    np.testing.assert_array_equal(thumbnail(turned), np.rot90(thumbnail(upright), -1))
    np.testing.assert_array_equal(thumbnail(in_pieces), thumbnail(upright))


def test_a_jpeg_costs_what_decoding_it_scaled_allocates() -> None:
    image = picture(1600, 1200)
    assert EncodedImage.identify(encode(image, "JPEG"), MAX_PIXELS).pixels == 400 * 300
    assert EncodedImage.identify(encode(image.convert("L"), "JPEG"), MAX_PIXELS).pixels == 400 * 300
    # libjpeg keeps all coefficients of a picture in several scans, however small it is decoded.
    assert EncodedImage.identify(encode(image, "JPEG", progressive=True), MAX_PIXELS).pixels == 2 * 1600 * 1200
    one = encode(image, "JPEG")
    start = one.index(b"\xff\xda")
    several = one[:start] + segment(0xFFDA, b"\x01\x01\x00\x00\x3f\x00") + one[start + 14 :]
    assert EncodedImage.identify(several, MAX_PIXELS).pixels == 2 * 1600 * 1200
    assert EncodedImage.identify(encode(image, "JPEG", progressive=True), 3_000_000).pixels == 3_000_000


def text_bomb() -> bytes:
    comment = zlib.compress("\N{CAT}".encode() + bytes(1_000_000), 9)
    chunks = [chunk(b"iTXt", b"comment %d\0\1\0\0\0" % n + comment) for n in range(60)]
    return png(32, 32, 8, 0, bytes(33 * 32), *chunks)


def exif_bomb() -> bytes:
    """Thousands of entries, each of which claims almost the whole of it."""
    count = 5_000
    entries = b"".join(struct.pack("<HHII", tag, 7, 12 * count, 8) for tag in range(1_000, 1_000 + count))
    return encode(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count) + entries)


def odd_metadata() -> bytes:
    """Pillow warns of the second entry, which is said to be at the end and longer than all that there is."""
    entry = struct.pack("<HHII", 0x10E, 2, 4, 0x20202020) + struct.pack("<HHII", 0x10F, 2, 1_000, 30)
    return encode(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\2\0" + entry + bytes(4))


@cache
def photos() -> dict[str, bytes]:
    """Five megapixels in the ways that take most memory."""
    colours, alpha = Image.new("RGB", (2500, 2000)), Image.new("RGBA", (2500, 2000))
    contents = {
        "photo: JPEG": encode(colours, "JPEG"),
        "photo: progressive JPEG": encode(colours, "JPEG", progressive=True, subsampling=0),
        "photo: RGBA PNG": encode(alpha, "PNG", compress_level=1),
        "photo: palette PNG": encode(colours.convert("P"), "PNG", compress_level=1),
        "photo: WebP": encode(alpha, "WEBP", lossless=True, quality=0, method=0),
    }
    if "AVIF" in images.DECODERS:
        contents["photo: AVIF"] = encode(alpha, "AVIF", speed=10, subsampling="4:4:4", max_threads=1)
    return contents


def damaged() -> dict[str, bytes]:
    """Every sample several times, with bytes changed, most of them where headers are."""
    chance, contents = random.Random(0), {}
    for name, content in SAMPLES.items():
        for n in range(8):
            hurt = bytearray(content)
            for _ in range(chance.randint(1, 6)):
                hurt[chance.randrange(min(len(hurt), chance.choice((40, 200, len(hurt)))))] = chance.randrange(256)
            contents[f"damaged: {name} {n}"] = bytes(hurt)
    return contents


ALLOWANCE = 16 << 20  # bytes, beside four for each pixel


def small() -> list[bytes]:
    """A picture of each format, with alpha where it has it."""
    found = []
    for kind, mode in (
        ("AVIF", "RGBA"),
        ("BMP", "RGB"),
        ("GIF", "P"),
        ("JPEG", "RGB"),
        ("PNG", "RGBA"),
        ("WEBP", "RGBA"),
    ):
        Image.new(mode, (600, 400)).save(file := io.BytesIO(), kind)
        found.append(file.getvalue())
    return found


LABORATORY = """
import os, pickle, re, resource, sys
from app.imaging.decode import EncodedImage
from app.errors import Problem


def peak():
    # Without libraries' pages: a forked process maps them again, as many at once as lie together in the kernel's cache.
    files = int(re.search(r"RssFile:\\s+(\\d+)", open("/proc/self/status").read())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - files

small, contents = pickle.load(sys.stdin.buffer)
# What the first image of a format makes Python import is no part of what an image takes.
for content in small:
    EncodedImage.identify(content, 1_000_000).thumbnails(3)
for name, content in contents.items():
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    before, pixels, outcome = peak(), 0, "decoded"
    try:
        image = EncodedImage.identify(content, 25_000_000)
        pixels = image.pixels
        image.thumbnails(3)
    except Problem as problem:
        outcome = problem.code
    plugins = ",".join(sorted(module for module in sys.modules if module.endswith("ImagePlugin")))
    print(name, outcome, pixels, peak() - before, plugins, "torch" in sys.modules, sep="\t", flush=True)
    os._exit(0)
"""


@dataclass(frozen=True)
class Observation:
    outcome: str
    pixels: int
    growth: int  # bytes by which identifying and decoding raised the process's peak of resident memory
    plugins: list[str]
    torch: bool
    stderr: str


@pytest.fixture(scope="module")
def observed() -> dict[str, Observation]:
    """What each image does to a process of its own."""
    contents = oversized() | photos()
    contents |= damaged() | {"comments": text_bomb(), "EXIF": exif_bomb(), "odd metadata": odd_metadata()}
    done = subprocess.run(
        [sys.executable, "-c", LABORATORY],
        input=pickle.dumps((small(), contents)),
        capture_output=True,
        cwd=Path(images.__file__).parents[2],
        check=True,
    )
    result = {}
    for line in done.stdout.decode().splitlines():
        name, outcome, pixels, kilobytes, plugins, torch = line.split("\t")
        growth = int(kilobytes) * 1024
        result[name] = Observation(
            outcome, int(pixels), growth, plugins.split(","), torch == "True", done.stderr.decode()
        )
    assert result.keys() == contents.keys()
    return result


def test_images_that_are_too_large_are_refused_without_using_memory(observed: dict[str, Observation]) -> None:
    for name in oversized():
        assert observed[name].outcome == "image_too_large", name
        assert observed[name].growth < 8 << 20, name


def test_decoding_stays_within_the_memory_it_is_charged_for(observed: dict[str, Observation]) -> None:
    for name in photos():
        assert observed[name].outcome == "decoded", name
        assert observed[name].growth < 4 * observed[name].pixels + ALLOWANCE, name


def test_decoding_corrupt_images_stays_within_the_memory_it_is_charged_for(observed: dict[str, Observation]) -> None:
    outcomes = set()
    for name in damaged():
        outcomes.add(observed[name].outcome)
        assert observed[name].growth < 4 * observed[name].pixels + ALLOWANCE, name
    assert {"decoded", "undecodable_image"} <= outcomes


def test_metadata_does_not_unfold_without_limit(observed: dict[str, Observation]) -> None:
    assert observed["comments"].outcome == "decoded"
    assert observed["comments"].growth < 32 << 20
    assert observed["EXIF"].outcome == "decoded"
    assert observed["EXIF"].growth < 32 << 20


def test_odd_metadata_leaves_no_trace_in_the_log(observed: dict[str, Observation]) -> None:
    assert observed["odd metadata"].outcome == "decoded"
    assert observed["odd metadata"].stderr == ""


def test_no_other_parser_is_ever_loaded(observed: dict[str, Observation]) -> None:
    known = [f"PIL.{name}ImagePlugin" for name in ("Avif", "Bmp", "Gif", "Jpeg", "Png", "WebP")]
    assert observed["photo: RGBA PNG"].plugins == known
    for name, observation in observed.items():
        # EXIF is a TIFF without a picture, and Pillow reads it as one.
        assert set(observation.plugins) <= {*known, "PIL.TiffImagePlugin"}, name
        assert not observation.torch, name


# Anything at all


def survives(content: bytes) -> None:
    try:
        image = EncodedImage.identify(content, 1_000_000)
        result = image.thumbnails(3)
    except Problem as problem:
        assert problem.status in (413, 415, 422)
        assert problem.detail.isascii()
        assert "0x" not in problem.detail
        assert "/" not in problem.detail
    else:
        assert 0 < image.pixels <= 1_000_000
        assert result.shape == (image.view_count(3), 32, 32, 3)
        assert result.dtype == np.uint8


def fuzz(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None)


samples = st.sampled_from(sorted(SAMPLES.values()))


@fuzz(150)
@given(samples, st.data())
def test_an_image_with_bytes_removed_is_decoded_or_refused(content: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(content)))
    survives(content[:start] + content[data.draw(st.integers(start, len(content))) :])


@fuzz(300)
@given(samples, st.data())
def test_an_image_with_changed_bytes_is_decoded_or_refused(content: bytes, data: st.DataObject) -> None:
    """Half of the damage is done to the first bytes, where headers are."""
    damaged = bytearray(content)
    positions = st.integers(0, min(200, len(content)) - 1) | st.integers(0, len(content) - 1)
    for position in data.draw(st.lists(positions, min_size=1, max_size=6)):
        damaged[position] = data.draw(st.integers(0, 255))
    survives(bytes(damaged))


@fuzz(200)
@given(samples, samples, st.data())
def test_two_images_joined_are_decoded_or_refused(first: bytes, second: bytes, data: st.DataObject) -> None:
    survives(first[: data.draw(st.integers(0, len(first)))] + second[data.draw(st.integers(0, len(second))) :])


@fuzz(100)
@given(samples, st.binary(max_size=200), st.data())
def test_an_image_with_bytes_inserted_is_decoded_or_refused(
    content: bytes, stuffing: bytes, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(content)))
    survives(content[:position] + stuffing + content[position:])


def test_threads_do_not_disturb_each_other() -> None:
    contents = list(SAMPLES.values()) * 5
    expected = [thumbnail(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        for result, alone in zip(pool.map(thumbnail, contents), expected, strict=True):
            np.testing.assert_array_equal(result, alone)


def test_white_space_is_not_searched_to_its_end_for_a_format() -> None:
    # Megabytes of it would keep all threads waiting: the search holds the interpreter's lock.
    with pytest.raises(UnsupportedMediaType, match="SVG"):
        EncodedImage.identify(b" " * 99 + b"<svg", MAX_PIXELS)
    with pytest.raises(UnsupportedMediaType, match="no image format known"):
        EncodedImage.identify(b" " * 100 + b"<svg", MAX_PIXELS)
