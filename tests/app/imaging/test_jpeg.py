import random

import numpy as np
import pytest
from PIL import Image

from app.errors import UndecodableImage, UnsupportedMediaType
from app.imaging.decode import EncodedImage
from app.imaging.jpeg import END, completions, essential, segments
from tests.app.imaging.icc import profile
from tests.app.imaging.test_decode import encode, exif, noise, picture, segment
from tests.conftest import DATA

KINDS = {
    "baseline": encode(noise(90, 70), "JPEG", quality=60),
    "grey": encode(noise(90, 70, 1), "JPEG", quality=60),
    "4:4:4": encode(noise(90, 70), "JPEG", quality=95, subsampling=0),
    "smooth": encode(picture(90, 70), "JPEG"),
    "restarts": encode(noise(90, 70), "JPEG", restart_marker_blocks=3),
    "progressive": encode(noise(90, 70), "JPEG", progressive=True),
    "CMYK": encode(noise(90, 70).convert("CMYK"), "JPEG"),
}


def thumbnail(content: bytes) -> np.ndarray:
    return EncodedImage.identify(content, 1_000_000).thumbnails(1, 64, 64)[0]


def with_segments(content: bytes, *extra: bytes) -> bytes:
    return content[:2] + b"".join(extra) + content[2:]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("filling", [b"", b"\0", bytes(5_000), b"\xff"], ids=["cut", "a zero", "zeros", "a fill byte"])
def test_a_jpeg_is_decoded_when_only_its_end_marker_is_missing(name: str, filling: bytes) -> None:
    content = KINDS[name]
    np.testing.assert_array_equal(thumbnail(content.removesuffix(END) + filling), thumbnail(content))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("filling", [b"", bytes(5_000)], ids=["cut", "zeros"])
def test_a_jpeg_that_lacks_pixels_is_refused(name: str, filling: bytes) -> None:
    content = KINDS[name]
    scan = content.rindex(b"\xff\xda")
    chance = random.Random(0)
    stuffed = [place + 1 for place in range(scan, len(content) - 40) if content[place] == 0xFF][:20]
    for length in [*stuffed, *(chance.randrange(scan, len(content) - 40) for _ in range(20)), scan, scan + 14]:
        with pytest.raises(UndecodableImage, match="cut short or corrupt"):
            thumbnail(content[:length] + filling)


@pytest.mark.parametrize("blocks", [1, 2, 6])
def test_a_jpeg_cut_at_a_restart_is_refused(blocks: int) -> None:
    """There, a decoder skips what follows up to the next marker, and fills the rest with grey."""
    content = encode(noise(90, 70), "JPEG", quality=60, restart_marker_blocks=blocks)
    restarts = [place for place in range(len(content)) if content[place] == 0xFF and 0xD0 <= content[place + 1] <= 0xD7]
    assert len(restarts) >= 4
    for place in restarts:
        for cut in (content[:place], content[: place + 1], content[: place + 2], content[:place] + bytes(900)):
            with pytest.raises(UndecodableImage):
                thumbnail(cut)


def test_zeros_that_belong_to_the_picture_are_no_damage() -> None:
    """Where the last byte of the coded pixels is zero, a file that lacks its end marker seems to end in zeros."""
    found = []
    for seed in range(300):
        image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))
        image.paste((255, 255, 255), (8, 8, 16, 16))
        content = encode(image, "JPEG", quality=75)
        if content.removesuffix(END).endswith(b"\0"):
            found.append(content)
            np.testing.assert_array_equal(thumbnail(content.removesuffix(END)), thumbnail(content))
    assert found


def test_headers_of_scans_cannot_name_more_than_there_is() -> None:
    """Each of these would otherwise take the interpreter 10 ms."""
    content = bytearray(KINDS["baseline"].removesuffix(END))
    content[content.index(b"\xff\xc0") + 9] = 255
    scan = b"\xff\xda\x02\x04\xff" + bytes(range(256)) * 2 + b"\x00\xff\x10"
    with pytest.raises(UndecodableImage):
        completions(bytes(content) + scan * 64)
    with pytest.raises(UndecodableImage):
        completions(KINDS["progressive"][:900] + scan * 64)


def test_a_progressive_jpeg_that_lacks_whole_scans_is_refused() -> None:
    content = KINDS["progressive"]
    starts = [place for place in range(len(content)) if content[place : place + 2] == b"\xff\xda"]
    assert len(starts) > 5
    for start in starts:
        with pytest.raises(UndecodableImage):
            thumbnail(content[:start])


def test_what_follows_the_end_marker_does_not_matter() -> None:
    content = KINDS["baseline"] + bytes(1_000) + KINDS["grey"][:500]
    assert completions(content) == [[content]]
    np.testing.assert_array_equal(thumbnail(content), thumbnail(KINDS["baseline"]))


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(segment(0xFFE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>"), id="XMP"),
        pytest.param(segment(0xFFE2, b"MPF\0rubbish"), id="several pictures"),
        pytest.param(segment(0xFFE2, b"ICC_PROFILE\0"), id="profile without a number"),
        pytest.param(segment(0xFFE2, b"ICC_PROFILE\0\2\7" + bytes(90)), id="part of a profile"),
        pytest.param(segment(0xFFE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)) * 20, id="1 MB of profiles"),
        pytest.param(segment(0xFFED, b"Photoshop 3.0\x008BIM"), id="Photoshop"),
        pytest.param(segment(0xFFED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\2ab"), id="Photoshop's resolution"),
        pytest.param(segment(0xFFFE, b"comment" * 9_000), id="a long comment"),
        pytest.param(segment(0xFFE0, b"JFIF\0\1"), id="JFIF cut short"),
        pytest.param(segment(0xFFE0, b"JFXX\0\x10") + segment(0xFFEB, b"x"), id="other applications"),
    ],
)
def test_metadata_never_makes_a_picture_unreadable(extra: bytes) -> None:
    content = KINDS["smooth"]
    np.testing.assert_array_equal(thumbnail(with_segments(content, extra)), thumbnail(content))


def test_orientation_profile_and_colour_transform_survive() -> None:
    content = encode(picture().convert("CMYK"), "JPEG", exif=exif(6), icc_profile=profile("linear"), comment=b"x" * 900)
    markers = [found.marker for found in segments(essential(content))]
    assert {0xE1, 0xE2, 0xEE} < set(markers) and 0xFE not in markers


@pytest.mark.parametrize(
    ("frame", "precision", "name"),
    [
        (0xC1, 12, "a JPEG with 12 bits"),
        (0xC2, 12, "a JPEG with 12 bits"),
        (0xC0, 16, "a JPEG with 16 bits"),
        (0xC3, 8, "a lossless or hierarchical JPEG"),
        (0xC5, 8, "a lossless or hierarchical JPEG"),
        (0xCB, 8, "a lossless or hierarchical JPEG"),
        (0xF7, 8, "a JPEG-LS"),
    ],
)
def test_kinds_of_jpeg_that_libjpeg_cannot_decode_are_refused_by_name(frame: int, precision: int, name: str) -> None:
    content = bytearray(KINDS["baseline"])
    start = content.index(b"\xff\xc0")
    content[start + 1], content[start + 4] = frame, precision
    with pytest.raises(UnsupportedMediaType, match=f"this is {name}.*save it as an ordinary JPEG"):
        thumbnail(bytes(content))


def test_an_arithmetic_coded_jpeg_of_any_size_is_decoded() -> None:
    """libjpeg cannot wait for more data of one, so it must get the file whole."""
    content = (DATA / "arithmetic.jpg").read_bytes()  # noise(320, 220), quality 95, made by jpegtran -arithmetic
    assert len(content) > 1 << 16
    difference = np.abs(thumbnail(content).astype(int) - np.asarray(noise(320, 220).resize((64, 64), 2)))
    assert difference.mean() < 3
    with pytest.raises(UndecodableImage):
        thumbnail(content[:-1_000])
    np.testing.assert_array_equal(thumbnail(content.removesuffix(END)), thumbnail(content))
