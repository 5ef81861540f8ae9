"""The program of a decoding process. It gets files on standard input, a socket, and returns thumbnails on it.

    python -P -m app.imaging.worker MEMORY_BYTES CPU_SECONDS

app.imaging.process starts it.
"""

import importlib
import io
import socket
import sys

from PIL import ExifTags, Image

from ..sandbox.channel import answer, receive
from ..sandbox.worker import serve
from .decode import EncodedImage
from .formats import DECODERS
from .protocol import DECODE, IDENTIFIED, IDENTITY, REQUEST, THUMBNAILS

# Pillow and the standard library import these at first use: TiffImagePlugin, for example, reads all EXIF.
LATE_IMPORTS = (
    *("copy", "mmap", "tempfile", "encodings.ascii", "encodings.latin_1", "encodings.utf_16", "encodings.utf_16_le"),
    *("PIL.ImageCms", "PIL.ImageColor", "PIL.ImageFilter", "PIL.ImagePalette", "PIL.MpoImagePlugin"),
    *("PIL.TiffImagePlugin", "PIL.TiffTags"),
)


def decode(channel: socket.socket, content: bytes, max_pixels: int, free_pixels: int, views: int, *sides: int) -> None:
    """Answer one request; `sides`: height and width for thumbnails, then for photographs.

    Raises a Problem or MemoryError.
    """
    image = EncodedImage.identify(content, max_pixels)
    identity = IDENTITY.pack(image.pixels, image.width, image.height)
    if image.pixels <= free_pixels:
        height, width = sides[:2] if image.kind == "thumbnails" else sides[2:]
        thumbnails = image.thumbnails(views, height, width).tobytes()
        answer(channel, IDENTIFIED, identity)
        answer(channel, THUMBNAILS, thumbnails)
        return
    answer(channel, IDENTIFIED, identity)
    wanted = receive(channel, DECODE.size)
    views, height, width = DECODE.unpack(wanted) if wanted else (0, 0, 0)
    if views:
        answer(channel, THUMBNAILS, image.thumbnails(views, height, width).tobytes())


def load_codecs() -> None:
    """Load what is loaded at first use, which the sandbox forbids: modules, and libraries of codecs."""
    for module in LATE_IMPORTS:
        importlib.import_module(module)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for kind in DECODERS:
        buffer = io.BytesIO()
        Image.new("RGB", (80, 80)).save(buffer, kind, exif=exif.tobytes())
        EncodedImage.identify(buffer.getvalue(), 100_000).thumbnails(3)


if __name__ == "__main__":
    load_codecs()
    serve(REQUEST, decode, memory_bytes=int(sys.argv[1]), cpu_seconds=float(sys.argv[2]))
