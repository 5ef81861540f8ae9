import numpy as np
import pytest

from app.errors import UndecodableImage
from app.imaging.decode import EncodedImage
from app.imaging.webp import essential
from tests.app.imaging.icc import profile
from tests.app.imaging.test_decode import encode, exif, noise, picture


def thumbnail(content: bytes) -> np.ndarray:
    return EncodedImage.identify(content, 1_000_000).thumbnails(1)[0]


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize(
    "metadata", [{"exif": exif(1)}, {"xmp": b"<x/>" * 200}, {"exif": exif(1), "xmp": b"<x/>" * 99}]
)
def test_metadata_cut_short_is_left_out(lossless: bool, metadata: dict[str, object]) -> None:
    plain = encode(picture(48, 40), "WEBP", lossless=lossless)
    content = encode(picture(48, 40), "WEBP", lossless=lossless, **metadata)
    first = min(place for place in (content.find(b"EXIF"), content.find(b"XMP ")) if place > 0)
    for length in (first, first + 3, first + 9, len(content) - 1, len(content)):
        np.testing.assert_array_equal(thumbnail(content[:length]), thumbnail(plain))


@pytest.mark.parametrize("name", [b"EXIF", b"XMP "])
def test_metadata_of_any_length_is_left_out_or_skipped(name: bytes) -> None:
    content = encode(picture(48, 40), "WEBP", exif=exif(1), xmp=b"<x/>")
    start = content.index(name)
    for length in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\1\0\0\0"):
        damaged = content[: start + 4] + length + content[start + 8 :]
        np.testing.assert_array_equal(thumbnail(damaged), thumbnail(content))


def test_a_later_frame_cut_short_is_left_out() -> None:
    content = encode(picture(48, 40), "WEBP", save_all=True, append_images=[noise(48, 40)], lossless=True)
    second = content.rindex(b"ANMF")
    for length in (second, second + 20, len(content) - 5):
        np.testing.assert_array_equal(thumbnail(content[:length]), thumbnail(content))


def test_pixels_cut_short_are_refused() -> None:
    content = encode(noise(48, 40), "WEBP", lossless=True)
    for length in (len(content) - 9, len(content) // 2, 40):
        with pytest.raises(UndecodableImage):
            thumbnail(content[:length])


def test_orientation_and_profile_survive() -> None:
    content = encode(picture(48, 40), "WEBP", exif=exif(6), icc_profile=profile("ProPhoto"), xmp=b"<x/>", lossless=True)
    assert b"XMP " in content and b"XMP " not in essential(content)
    np.testing.assert_array_equal(thumbnail(essential(content)), thumbnail(content))
    assert not np.array_equal(thumbnail(content), thumbnail(encode(picture(48, 40), "WEBP", lossless=True)))


def test_a_picture_without_metadata_stays_as_it_is() -> None:
    content = encode(picture(48, 40), "WEBP")
    assert essential(content) is content
