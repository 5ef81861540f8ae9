import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from app.errors import UndecodableImage, UnsupportedMediaType
from app.imaging.decode import EncodedImage
from app.imaging.formats import is_tiny
from app.imaging.png import END, MAX_CHUNKS, MAX_METADATA_BYTES, chunks, essential
from tests.app.imaging.icc import profile
from tests.app.imaging.test_decode import chunk, encode, exif, noise, picture

CORRUPT = struct.pack(">I4s4sI", 4, b"tEXt", b"a\0bc", 0)
UNPACKED = zlib.compress(bytes(MAX_METADATA_BYTES + 1))


def thumbnail(content: bytes) -> np.ndarray:
    return EncodedImage.identify(content, 1_000_000).thumbnails(1)[0]


def with_chunks(content: bytes, *extra: bytes) -> bytes:
    """After the header."""
    return content[:33] + b"".join(extra) + content[33:]


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(CORRUPT, id="text with a wrong checksum"),
        pytest.param(CORRUPT.replace(b"tEXt", b"pHYs"), id="resolution with a wrong checksum"),
        pytest.param(CORRUPT.replace(b"tEXt", b"eXIf"), id="EXIF with a wrong checksum"),
        pytest.param(CORRUPT.replace(b"tEXt", b"iCCP"), id="profile with a wrong checksum"),
        pytest.param(chunk(b"tEXt", b"comment\0" + bytes(5_000_000)), id="5 MB of text"),
        pytest.param(chunk(b"zTXt", b"comment\0\0" + UNPACKED), id="text that unfolds"),
        pytest.param(chunk(b"iTXt", b"comment\0\1\0\0\0" + UNPACKED), id="international text that unfolds"),
        pytest.param(chunk(b"iCCP", b"profile\0\0" + UNPACKED), id="profile that unfolds"),
        pytest.param(chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(200))[:-6]), id="profile that is cut short"),
        pytest.param(chunk(b"iCCP", b"profile"), id="profile without data"),
        pytest.param(chunk(b"eXIf", bytes(MAX_METADATA_BYTES + 1)), id="1 MB of EXIF"),
        pytest.param(chunk(b"gAMA", b"\0"), id="gamma of one byte"),
        pytest.param(chunk(b"cHRM", b"\0"), id="chromaticities of one byte"),
        pytest.param(chunk(b"acTL", b"\0"), id="animation without a length"),
        pytest.param(chunk(b"fcTL", b"\0"), id="frame of an animation without a size"),
        pytest.param(chunk(b"ABCD", b"\0"), id="a kind that nobody knows"),
    ],
)
def test_metadata_never_makes_a_picture_unreadable(extra: bytes) -> None:
    content = encode(picture(), "PNG")
    np.testing.assert_array_equal(thumbnail(with_chunks(content, extra)), thumbnail(content))


def test_orientation_and_profile_survive() -> None:
    content = encode(picture(), "PNG", exif=exif(6), icc_profile=profile("ProPhoto"), compress_level=0)
    kept = [found.kind for found in chunks(essential(with_chunks(content, CORRUPT)))]
    assert {b"eXIf", b"iCCP"} < set(kept) and b"tEXt" not in kept
    np.testing.assert_array_equal(thumbnail(with_chunks(content, CORRUPT)), thumbnail(content))


def test_a_picture_without_other_chunks_stays_as_it_is() -> None:
    content = encode(picture(), "PNG")
    assert essential(content) is content


@pytest.mark.parametrize(
    "image", [picture(48, 40), noise(48, 40), picture(48, 40).quantize(64)], ids=lambda it: it.mode
)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("filling", [b"", bytes(1), bytes(5_000)], ids=["cut", "a zero", "zeros"])
def test_a_png_is_decoded_when_only_its_end_is_missing(image: object, several: bool, filling: bytes) -> None:
    """The end: the end chunk, and the checksums of the last pixels before it."""
    content = encode(image, "PNG")
    if several:
        pixels = content.index(b"IDAT") - 4
        stream = content[pixels + 8 : -16]
        parts = [stream[start : start + 700] for start in range(0, len(stream), 700)]
        content = content[:pixels] + b"".join(chunk(b"IDAT", part) for part in parts) + END
    whole = thumbnail(content)
    for missing in range(21):  # the end chunk has 12 bytes, the checksums 4 and 4
        np.testing.assert_array_equal(thumbnail(content[: len(content) - missing] + filling), whole)


@pytest.mark.parametrize("filling", [b"", bytes(500)], ids=["cut", "zeros"])
def test_a_png_that_lacks_pixels_is_refused(filling: bytes) -> None:
    content = encode(noise(48, 40), "PNG")  # incompressible: each byte holds pixels
    for missing in range(30, 300, 10):
        with pytest.raises(UndecodableImage, match="cut short or corrupt"):
            thumbnail(content[: len(content) - missing] + filling)


def test_a_wrong_checksum_of_pixels_is_noticed_without_an_end_too() -> None:
    content = bytearray(encode(noise(48, 40), "PNG"))
    content[-20] ^= 1
    for damaged in (content, content[:-12], content[:-14]):
        with pytest.raises(UndecodableImage):
            thumbnail(bytes(damaged))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_a_png_whose_data_ends_early_is_refused_and_black_rows_are_not(mode: str) -> None:
    image = Image.new(mode, (40, 30))  # zeros
    content = encode(image, "PNG")
    whole = thumbnail(content)
    start, rows = content.index(b"IDAT") + 4, zlib.decompress(content[content.index(b"IDAT") + 4 : -16])
    for kept in (29, 15, 1):
        short = content[: start - 8] + chunk(b"IDAT", zlib.compress(rows[: len(rows) * kept // 30])) + END
        with pytest.raises(UndecodableImage):
            thumbnail(short)
    np.testing.assert_array_equal(thumbnail(content), whole)


def test_a_png_begins_with_its_only_header() -> None:
    """Another one, or another place, would be read as another size."""
    content = encode(picture(), "PNG")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    text = chunk(b"tEXt", bytes(16))
    for damaged in (content[:8] + header + content[8:], with_chunks(content, header), content[:8] + text + content[8:]):
        assert not is_tiny(damaged)
        with pytest.raises(UndecodableImage):
            thumbnail(damaged)


def test_too_many_chunks_are_refused() -> None:
    with pytest.raises(UndecodableImage, match="more than 20,000 chunks"):
        essential(with_chunks(encode(picture(), "PNG"), chunk(b"tEXt", b"a\0b") * MAX_CHUNKS))


def test_apples_variant_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedMediaType, match="CgBI"):
        thumbnail(encode(picture(), "PNG")[:8] + chunk(b"CgBI", bytes(4)) + encode(picture(), "PNG")[8:])
