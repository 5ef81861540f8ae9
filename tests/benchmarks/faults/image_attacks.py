"""Requests with images and bodies that are expensive to decode or to parse, for tests.benchmarks.faults.hostile."""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.benchmarks.serving.http_load import post
from tests.conftest import DATA

CAT = (DATA / "cat.png").read_bytes()
BOUNDARY = "multipart/form-data; boundary=b"


def encoded(width: int, height: int, kind: str, mode: str = "RGB", noise: bool = False, quality: int = 80) -> bytes:
    out = io.BytesIO()
    if noise:
        tile = np.random.default_rng(0).integers(0, 256, (250, 250, 3), dtype=np.uint8)
        image = Image.fromarray(np.tile(tile, (height // 250, width // 250, 1)))
    else:
        image = Image.new(mode, (width, height))
    image.save(out, kind, **{"JPEG": {"quality": quality}, "AVIF": {"speed": 10, "subsampling": "4:4:4"}}.get(kind, {}))
    return out.getvalue()


def part(content: bytes, name: str = "file") -> bytes:
    """A part of a multipart body with the boundary `b`."""
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'
    return head.encode() + content + b"\r\n"


def run_length_bmp(width: int = 10_000, height: int = 2_500) -> bytes:
    """A BMP of 25 megapixels in 11 kB: one pixel and an end of line for each row."""
    data, palette = b"\x01\x01\0\0" * height, bytes(4 * 256)
    offset = 54 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + info + palette + data


def jpeg_with(filling: bytes) -> bytes:
    """A small JPEG with `filling` between its first two segments."""
    picture = encoded(32, 32, "JPEG")
    return picture[:20] + filling + picture[20:]


def png_with_chunks(count: int) -> bytes:
    """A small PNG with empty private chunks and correct checksums."""
    picture, kind = encoded(32, 32, "PNG"), b"prVt"
    return picture[:33] + (struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind))) * count + picture[33:]


def progressive_jpeg_of_many_scans(scans: int = 60) -> bytes:
    """A large progressive JPEG that repeats its last scan. Each scan passes over all coefficients."""
    out = io.BytesIO()
    Image.new("RGB", (4_900, 4_900), (1, 2, 3)).save(out, "JPEG", progressive=True, quality=30)
    content = out.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + b"\xff\xd9"


def images() -> Iterator[tuple[str, bytes]]:
    """Names and files."""
    yield "PNG of 100 megapixels", encoded(10_000, 10_000, "PNG", "1")
    yield "JPEG of 25 megapixels of noise", encoded(5000, 5000, "JPEG", quality=30, noise=True)
    yield "PNG of 25 megapixels", encoded(5000, 5000, "PNG")
    yield "WebP of 8 megapixels", encoded(2880, 2880, "WEBP", "RGBA")
    yield "AVIF of 15 megapixels", encoded(3870, 3870, "AVIF", "RGBA")
    yield "AVIF of 15 megapixels of noise", encoded(3750, 4000, "AVIF", noise=True)
    yield "GIF of 25 megapixels", encoded(5000, 5000, "GIF")
    yield "BMP in run lengths", run_length_bmp()
    yield "JPEG of 60 scans", progressive_jpeg_of_many_scans()
    yield "JPEG of 2,600,000 segments", jpeg_with(b"\xff\xe0\x00\x02" * 2_600_000)
    yield "JPEG of as many segments as are accepted", jpeg_with(b"\xff\xe0\x00\x02" * 1_900)
    yield "JPEG of 3 MB of fill bytes", jpeg_with(b"\xff" * 3_000_000)
    yield "PNG of 250,000 chunks", png_with_chunks(250_000)
    yield "PNG of as many chunks as are accepted", png_with_chunks(19_000)


def requests() -> Iterator[tuple[str, bytes]]:
    """Names and requests: all images on /predict, some of them on other routes, and bodies that are no images."""
    for name, content in images():
        yield name, post("/predict", content)
    segments = jpeg_with(b"\xff\xe0\x00\x02" * 2_500_000)
    message = b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":%d}}]}'
    for name, content in (("BMP in run lengths", run_length_bmp()), ("JPEG of 2,500,000 segments", segments)):
        framed = len(content).to_bytes(4, "little") + content
        header = message % len(framed)
        request = post("/v2/models/cifar10_image/infer", gzip.compress(header + framed))
        more = f"Host: load\r\nContent-Encoding: gzip\r\nInference-Header-Content-Length: {len(header)}"
        yield f"{name}, gzipped, over /v2", request.replace(b"Host: load", more.encode(), 1)
    yield "/explain of AVIFs of 15 megapixels", post("/explain", encoded(3870, 3870, "AVIF", "RGBA"))
    batch = b"".join(part(encoded(5000, 5000, "PNG"), "files") for _ in range(32)) + b"--b--\r\n"
    yield "batches of 32 PNGs of 25 megapixels", post("/predict/batch", batch, BOUNDARY)
    many = b"".join(part(b"x", "files") for _ in range(10_000)) + b"--b--\r\n"
    yield "forms of 10,000 parts", post("/predict/batch", many, BOUNDARY)
    fields = b"".join(b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' for _ in range(10_000))
    yield "forms of 10,000 fields", post("/predict/batch", fields + b"--b--\r\n", BOUNDARY)
    yield "bodies of 31 MB that are no images", post("/predict/batch", part(b"\0" * 31_000_000), BOUNDARY)
    ends = part(b"\r\n" * 4_000_000, "files") + b"--b--\r\n"
    yield "forms of 4,000,000 line ends", post("/predict/batch", ends, BOUNDARY)
    near = part(b"\r\n--" * 2_000_000, "files") + b"--b--\r\n"
    yield "forms of 2,000,000 boundaries, almost", post("/predict/batch", near, BOUNDARY)
    bomb = gzip.compress(b'{"inputs": [' + b" " * 200_000_000)
    request = post("/v2/models/cifar10/infer", bomb, "application/json")
    yield (
        "bodies of 200 kB that unpack to 200 MB",
        request.replace(b"Host: load", b"Host: load\r\nContent-Encoding: gzip"),
    )
    yield "JSON of 5,000,000 brackets", post("/v2/models/cifar10/infer", b"[" * 5_000_000, "application/json")
