"""The program of a decoding process. It reads images from standard input, a socket, and returns thumbnails on it.

    python -P -m app.imaging.worker MEMORY_BYTES CPU_SECONDS

app.imaging.process starts it. The kernel ends it if an image takes more than CPU_SECONDS.
"""

import importlib
import io
import json
import signal
import socket
import sys

from PIL import ExifTags, Image

from ..errors import Problem, TooExpensive
from .confinement import confine
from .decode import EncodedImage
from .formats import DECODERS
from .messages import ANSWER, DECODE, IDENTIFIED, IDENTITY, PROBLEM, READY, REQUEST, THUMBNAILS, receive

# Pillow and the standard library import these at first use: TiffImagePlugin, for example, reads all EXIF.
LATE_IMPORTS = (
    *("copy", "mmap", "tempfile", "encodings.ascii", "encodings.latin_1", "encodings.utf_16", "encodings.utf_16_le"),
    *("PIL.ImageCms", "PIL.ImageColor", "PIL.ImageFilter", "PIL.ImagePalette", "PIL.MpoImagePlugin"),
    *("PIL.TiffImagePlugin", "PIL.TiffTags"),
)


def main(memory_bytes: int, cpu_seconds: float) -> None:
    """Answer until the other side closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the service
    with socket.socket(fileno=0) as channel:
        _load_codecs()
        restrictions = ",".join(sorted(confine(memory_bytes))).encode()
        channel.sendall(ANSWER.pack(READY, len(restrictions)) + restrictions)
        while header := receive(channel, REQUEST.size):
            size, max_pixels = REQUEST.unpack(header)
            content = receive(channel, size)
            try:
                _answer(channel, content, cpu_seconds, max_pixels)
            except MemoryError:
                _refuse(channel, TooExpensive("decoding the image takes more memory than is allowed"))
                return  # the heap may be too fragmented for the next image
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(channel: socket.socket, content: bytes, cpu_seconds: float, max_pixels: int) -> None:
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF has no handler, so it ends the process
    try:
        image = EncodedImage.identify(content, max_pixels)
        channel.sendall(ANSWER.pack(IDENTIFIED, IDENTITY.size) + IDENTITY.pack(image.pixels, image.width, image.height))
        wanted = receive(channel, DECODE.size)
        views, height, width = DECODE.unpack(wanted) if wanted else (0, 0, 0)
        if not views:
            return
        thumbnails = image.thumbnails(views, height, width).tobytes()
    except Problem as problem:
        if isinstance(problem.__cause__, MemoryError):
            raise problem.__cause__ from None
        _refuse(channel, problem)
        return
    channel.sendall(ANSWER.pack(THUMBNAILS, len(thumbnails)) + thumbnails)


def _refuse(channel: socket.socket, problem: Problem) -> None:
    text = json.dumps([problem.code, problem.detail]).encode()
    channel.sendall(ANSWER.pack(PROBLEM, len(text)) + text)


def _load_codecs() -> None:
    """Load what is loaded at first use, which `confine` forbids: modules, and libraries of codecs."""
    for module in LATE_IMPORTS:
        importlib.import_module(module)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for kind in DECODERS:
        buffer = io.BytesIO()
        Image.new("RGB", (80, 80)).save(buffer, kind, exif=exif.tobytes())
        EncodedImage.identify(buffer.getvalue(), 100_000).thumbnails(3)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
