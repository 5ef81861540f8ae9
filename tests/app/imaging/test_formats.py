import gzip
import io
import struct
import zlib

import pytest
from PIL import Image

from app.errors import UndecodableImage, UnsupportedMediaType
from app.imaging import jpeg
from app.imaging.decode import EncodedImage
from app.imaging.formats import MINUTE_BYTES, TINY_BYTES, TINY_PARTS, is_minute, is_tiny, recognise
from app.imaging.jpeg import MAX_PADDING, MAX_SEGMENTS
from app.imaging.png import MAX_CHUNKS


def encoded(kind: str, width: int = 32, height: int = 32, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, kind, **options)
    return out.getvalue()


def rle_bmp(compression: int, width: int = 4, height: int = 4, header_bytes: int = 40) -> bytes:
    """A BMP with a palette whose pixels are run-length encoded."""
    data, palette = b"\x04\x01\0\0" * height + b"\0\1", bytes(4 * 256)
    info = struct.pack("<IiiHHIIiiII", header_bytes, width, height, 1, 8, compression, len(data), 2835, 2835, 256, 0)
    info += bytes(header_bytes - 40)
    offset = 14 + header_bytes + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + info + palette + data


@pytest.mark.parametrize("compression", [1, 2, 4])
@pytest.mark.parametrize("header_bytes", [40, 56, 108, 124])
def test_a_run_length_encoded_bmp_is_refused_with_its_reason(compression: int, header_bytes: int) -> None:
    with pytest.raises(UnsupportedMediaType, match="run-length"):
        recognise(rle_bmp(compression, header_bytes=header_bytes))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_other_bmps_are_recognised(mode: str) -> None:
    assert recognise(encoded("BMP", mode=mode)) == "BMP"


JPEG = encoded("JPEG")


@pytest.mark.parametrize(
    "segment", [b"\xff\xe0\x00\x02", b"\xff\xfe\x00\x02", b"\xff\xe1\x00\x03x", b"\xff\xd0", b"\xff\xff\xed\x00\x02"]
)
def test_a_jpeg_of_endless_segments_is_refused_at_once(segment: bytes) -> None:
    with pytest.raises(UndecodableImage, match="segments|padding"):
        EncodedImage.identify(JPEG[:20] + segment * 100_000 + JPEG[20:], 10_000)


@pytest.mark.parametrize("padding", [b"\xff", b"\x00", b"\xff\x00", b"x"])
def test_a_jpeg_of_endless_padding_is_refused_at_once(padding: bytes) -> None:
    with pytest.raises(UndecodableImage, match="segments|padding"):
        EncodedImage.identify(JPEG[:20] + padding * 3_000_000 + JPEG[20:], 10_000)


def test_a_jpeg_at_the_limit_of_segments_is_accepted() -> None:
    many = JPEG[:2] + b"\xff\xfe\x00\x02" * (MAX_SEGMENTS - 20) + JPEG[2:]
    assert EncodedImage.identify(many, 10_000).thumbnails(1).shape == (1, 32, 32, 3)
    padded = JPEG[:2] + b"\xff" * (MAX_PADDING - 20) + JPEG[2:]
    assert EncodedImage.identify(padded, 10_000).thumbnails(1).shape == (1, 32, 32, 3)


def png_with(count: int, kind: bytes = b"prVt", content: bytes = b"") -> bytes:
    picture = encoded("PNG")
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return picture[:33] + chunk * count + picture[33:]


@pytest.mark.parametrize("kind", [b"prVt", b"tEXt", b"IDAT", b"vpAg"])
def test_a_png_of_endless_chunks_is_refused_at_once(kind: bytes) -> None:
    with pytest.raises(UndecodableImage, match="chunks"):
        EncodedImage.identify(png_with(MAX_CHUNKS + 1, kind), 10_000)


def test_as_many_chunks_as_encoders_write_are_accepted() -> None:
    assert EncodedImage.identify(png_with(10_000), 10_000).thumbnails(1).shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    "content", [b"\xff\xd8\xff", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"BM", b"\xff\xd8\xff\xda"]
)
def test_headers_that_end_early_are_left_to_the_decoder(content: bytes) -> None:
    assert recognise(content) in ("JPEG", "PNG", "BMP")
    assert is_tiny(content) in (True, False)
    with pytest.raises(UndecodableImage):
        EncodedImage.identify(content, 10_000)


def test_the_smallest_of_tiny_files_are_minute() -> None:
    assert is_minute(encoded("PNG")) and is_minute(encoded("JPEG", 64, 64))
    assert not is_minute(encoded("PNG", 65, 64))
    assert not is_minute(encoded("GIF"))
    assert not is_minute(encoded("PNG") + bytes(MINUTE_BYTES))


def test_small_files_of_linear_formats_are_tiny() -> None:
    assert is_tiny(encoded("PNG"))
    assert is_tiny(encoded("JPEG"))
    assert is_tiny(encoded("PNG", 256, 256))
    assert not is_tiny(encoded("PNG", 257, 256))
    assert not is_tiny(encoded("JPEG", 300, 300))
    assert not is_tiny(encoded("JPEG", 100, 100, progressive=True))
    for kind in ("GIF", "BMP", "WEBP", "AVIF"):
        assert not is_tiny(encoded(kind))
    assert not is_tiny(encoded("PNG") + bytes(TINY_BYTES))
    assert not is_tiny(b"")
    assert not is_tiny(gzip.compress(b"x"))


def test_a_lie_in_the_first_header_of_a_jpeg_does_not_make_it_tiny() -> None:
    large = encoded("JPEG", 5000, 5000)[: TINY_BYTES - 100]
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 8, 8, 3) + b"\x01\x11\x00\x02\x11\x01\x03\x11\x01"
    assert not is_tiny(large[:2] + frame + large[2:])


FRAME = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, 8, 8, 1) + b"\x01\x11\x00"


@pytest.mark.parametrize(
    "beginning",
    [
        b"\xff\xdc\x00\x01" + FRAME + b"\xff\xdc\x01\x00" + bytes(254),  # lengths that do not count themselves
        b"\xff\xdc\x00\x00" + FRAME + b"\xff\xfe\x01\x00" + bytes(254),
        b"\xff\xe0\x00\x01" + FRAME,
        b"\xff\xf1\x7f\x00",  # markers without a segment
        b"\xff\xc8\x00\x0d" + FRAME,
        b"\xff\xfd\x00\x0d" + FRAME,
        b"\xff\xd0\xff\xff" + FRAME,
    ],
)
def test_a_jpeg_has_the_size_that_pillow_finds(beginning: bytes) -> None:
    picture = encoded("JPEG", 300, 301)
    content = picture[:2] + beginning + picture[2:]
    assert (300, 301) == jpeg.size(content) == Image.open(io.BytesIO(content)).size
    found = EncodedImage.identify(content, 1_000_000)
    assert (found.width, found.height) == (300, 301)
    assert jpeg.size(jpeg.essential(content)) == (300, 301)
    assert not is_tiny(content)


def test_a_jpeg_whose_size_is_not_found_is_not_tiny() -> None:
    for content in (b"\xff\xd8\xff\xd9", encoded("JPEG")[:2] + b"\xff\xfe\x7f\x00" + encoded("JPEG")[2:]):
        assert jpeg.size(content) == (0, 0)
        assert not is_tiny(content) and not is_minute(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_of_many_parts_is_not_tiny(kind: str) -> None:
    """Pillow would hold the interpreter's lock while it reads them."""
    picture = encoded(kind)
    empty = struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    part, place = (b"\xff\xfe\x00\x02", 2) if kind == "JPEG" else (empty, 33)
    few, many = (picture[:place] + part * count + picture[place:] for count in (TINY_PARTS // 2, TINY_PARTS))
    assert is_tiny(few) and not is_tiny(many)
    assert len(many) <= TINY_BYTES and recognise(many) == kind


def test_a_picture_that_must_be_repaired_or_has_long_metadata_is_not_tiny() -> None:
    exif = Image.Exif()
    exif[0x010F] = "x" * 2_000
    for kind, end in (("PNG", 12), ("JPEG", 2)):
        assert not is_tiny(encoded(kind)[:-end])
        assert not is_tiny(encoded(kind, exif=exif.tobytes()))
        exif_of_a_camera = Image.Exif()
        exif_of_a_camera[0x0112] = 6
        assert is_tiny(encoded(kind, exif=exif_of_a_camera.tobytes()))
