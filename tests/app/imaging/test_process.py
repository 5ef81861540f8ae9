import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.errors import TooExpensive, UndecodableImage
from app.imaging.decode import EncodedImage
from app.imaging.kinds import Sizes
from app.imaging.process import DecodingProcess, Order, problem_of
from app.sandbox.conversation import ProcessEnded
from app.settings import Settings
from tests.app.imaging.icc import profile
from tests.benchmarks.faults.slowest_pictures import SHARES, WAYS, scene


@pytest.fixture
def process() -> Iterator[DecodingProcess]:
    process = DecodingProcess(memory_bytes=64 << 20, cpu_seconds=5.0)
    yield process
    process.end()


def decode(process: DecodingProcess, content: bytes, views: int = 1) -> np.ndarray:
    process.identify(content, 25_000_000)
    return process.thumbnails(views, 32, 32)


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height), 7).save(out, "PNG")
    return out.getvalue()


def test_a_process_gives_the_same_thumbnails_as_direct_decoding(process: DecodingProcess, cat: bytes) -> None:
    for content, views in ((cat, 3), (png(100, 90), 3), (png(100, 90), 1)):
        expected = EncodedImage.identify(content, 1_000_000).thumbnails(views)
        np.testing.assert_array_equal(decode(process, content, views), expected)


def test_a_process_tells_the_kind_of_a_picture_and_makes_any_size(process: DecodingProcess, cat: bytes) -> None:
    assert process.identify(cat, 25_000_000)[1] == "thumbnails"
    thumbnails = process.thumbnails(1, 64, 48)
    np.testing.assert_array_equal(thumbnails, EncodedImage.identify(cat, 1_000_000).thumbnails(1, 64, 48))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
CLEAR = NOISE.convert("RGBA")
CLEAR.putalpha(NOISE.convert("L"))
PROFILE = profile("Display P3")


def text_chunks() -> PngInfo:
    chunks = PngInfo()
    chunks.add_text("Comment", "caf\u00e9")
    chunks.add_text("Software", "x" * 500, zip=True)
    chunks.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="3"></x:xmpmeta>', "en", "xmp", zip=True)
    return chunks


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found.update({0x112: orientation, 0x010F: "Maker", 0x9286: b"UNICODE\0" + "\u00e9".encode("utf-16-le")})
    found.get_ifd(0x8825)[1] = "N"
    return found.tobytes()


ODD: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
    **{
        f"{kind} turned {orientation}": (NOISE, kind, {"exif": exif(orientation)})
        for kind in ("JPEG", "PNG", "WEBP", "AVIF")
        for orientation in (1, 3, 6, 8)
    },
    **{f"{kind} with a profile": (NOISE, kind, {"icc_profile": PROFILE}) for kind in ("JPEG", "PNG", "WEBP", "AVIF")},
    **{f"{kind} with alpha": (CLEAR, kind, {}) for kind in ("PNG", "WEBP", "GIF", "AVIF", "BMP")},
    **{
        f"{kind} of mode {mode}": (NOISE.convert(mode), kind, {})
        for kind, modes in {"PNG": "1 L LA P", "GIF": "1 L P", "BMP": "1 L P", "JPEG": "L CMYK YCbCr"}.items()
        for mode in modes.split()
    },
    **{
        f"animated {kind}": (NOISE.quantize(60), kind, {"save_all": True, "append_images": [NOISE], "disposal": 2})
        for kind in ("GIF", "PNG")
    },
    "animated WEBP": (NOISE, "WEBP", {"save_all": True, "append_images": [CLEAR]}),
    "progressive JPEG": (NOISE, "JPEG", {"progressive": True, "comment": b"caf\xe9", "dpi": (72, 72)}),
    "PNG with texts": (NOISE, "PNG", {"pnginfo": text_chunks(), "dpi": (72, 72)}),
    "PNG with a transparent colour": (NOISE.quantize(20), "PNG", {"transparency": 3}),
    "PNG of 16 bits": (NOISE.convert("I;16"), "PNG", {}),
    "JPEG with several pictures": (NOISE, "MPO", {"save_all": True, "append_images": [NOISE]}),
}


@pytest.fixture(scope="module")
def lasting() -> Iterator[DecodingProcess]:
    process = DecodingProcess(memory_bytes=64 << 20, cpu_seconds=5.0)
    yield process
    process.end()


@pytest.mark.parametrize("name", ODD)
def test_a_confined_process_decodes_what_a_plain_one_does(lasting: DecodingProcess, name: str) -> None:
    """What Pillow imports at first use must be there before the file system is closed."""
    image, kind, options = ODD[name]
    out = io.BytesIO()
    image.save(out, kind, **options)
    expected = EncodedImage.identify(out.getvalue(), 1_000_000).thumbnails(1)
    np.testing.assert_array_equal(decode(lasting, out.getvalue()), expected)


def test_an_image_that_is_declined_is_forgotten(process: DecodingProcess, cat: bytes) -> None:
    assert process.identify(png(300, 200), 25_000_000) == (60_000, "photographs")
    process.decline()
    assert decode(process, cat).shape == (1, 32, 32, 3)


def test_an_ordered_image_within_the_free_pixels_comes_without_a_question(process: DecodingProcess, cat: bytes) -> None:
    sizes: Sizes = {"thumbnails": (32, 32), "photographs": (64, 48)}
    photo = png(100, 90)
    for content, views, kind in ((cat, 1, "thumbnails"), (photo, 3, "photographs")):
        expected = EncodedImage.identify(content, 1_000_000).thumbnails(views, *sizes[kind])
        for free in (100 * 90, 0):  # the answers are the same
            assert process.identify(content, 25_000_000, Order(views, sizes, free))[1] == kind
            np.testing.assert_array_equal(process.thumbnails(views, *sizes[kind]), expected)
    process.identify(photo, 25_000_000, Order(3, sizes, 100 * 90))
    process.decline()
    with pytest.raises(UndecodableImage):
        process.identify(png(500, 400)[:-40] + bytes(40), 25_000_000, Order(1, sizes, 1_000_000))
    assert decode(process, cat).shape == (1, 32, 32, 3)


def test_problems_of_identifying_and_decoding_come_through(process: DecodingProcess, cat: bytes) -> None:
    with pytest.raises(UndecodableImage, match="PNG"):
        process.identify(cat[:20], 25_000_000)
    broken = png(500, 400)[:-40] + bytes(40)
    with pytest.raises(UndecodableImage):
        decode(process, broken)
    assert decode(process, cat).shape == (1, 32, 32, 3)


def test_an_image_over_its_memory_is_too_expensive(process: DecodingProcess) -> None:
    with pytest.raises(ProcessEnded) as ended:
        decode(process, png(5000, 5000))
    assert ended.value.reason == "memory"
    problem = problem_of(ended.value)
    assert isinstance(problem, TooExpensive)
    assert problem.detail == "decoding the image takes more memory than is allowed"


@pytest.mark.parametrize("way", WAYS, ids=[way[0] for way in WAYS])
def test_slow_ordinary_pictures_take_a_part_of_the_allowed_time(way: tuple) -> None:
    """A tenth of the pixels in half of the time; tests.benchmarks.faults.slowest_pictures measures all pixels."""
    settings = Settings(_env_file=None)
    _, kind, options, change = way
    out = io.BytesIO()
    change(scene(int(settings.max_pixels * SHARES.get(kind, 1)) // 10, 16)).save(out, kind, **options)
    process = DecodingProcess(memory_bytes=300 << 20, cpu_seconds=settings.max_decode_seconds / 2)
    try:
        assert decode(process, out.getvalue()).shape == (1, 32, 32, 3)
    finally:
        process.end()
