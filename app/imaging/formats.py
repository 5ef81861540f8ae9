"""The image formats: the signature that identifies each, the checks before decoding, and the Pillow class that decodes.

recognise(content)      # "PNG"; raises UnsupportedMediaType for other formats
is_tiny(content)        # whether a thread of the service may decode it, without a process of its own
is_minute(content)      # whether even the event loop may
"""

import math
import re
import warnings

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
    features,
)

from ..errors import PayloadTooLarge, UndecodableImage, UnsupportedMediaType
from . import jpeg, png

# Up to these limits a PNG or JPEG takes a thread about 1 ms. A process would cost more.
TINY_BYTES = 1 << 14
TINY_PIXELS = 1 << 16
TINY_METADATA = 1 << 10  # bytes: Pillow reads EXIF in Python
# Up to these most take less than a change of threads does, 0.1 ms; the slowest take 0.8 ms.
MINUTE_BYTES = 1 << 13
MINUTE_PIXELS = 1 << 12
TINY_PARTS = 64  # segments or chunks: each is read in Python, under the interpreter's lock


class LeanWebPImageFile(WebPImagePlugin.WebPImageFile):
    """Pillow's WebP image, but it frees its decoder, which holds the image twice, before it allocates the pixels."""

    def load_prepare(self) -> None:
        self._decoder = None
        super().load_prepare()


# These classes are used instead of Image.open, which would import forty other parsers and read the further pictures in
# a JPEG (MPO). Pillow's own limit, Image.MAX_IMAGE_PIXELS, stays as a second line of defence.
DECODERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": LeanWebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
if features.check("avif"):
    DECODERS["AVIF"] = AvifImagePlugin.AvifImageFile

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # several images are decoded at the same time

# Pillow's warnings about odd metadata quote the file. Printing them would put paths of the machine into the log, and
# Python keeps each distinct text for ever unless a filter ignores it.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.simplefilter("error", Image.DecompressionBombWarning)

BYTES = "send the image's own bytes, as curl --data-binary @photo.png and curl -F file=@photo.png do"
# The first match decides. Formats without a decoder are listed so that the error can name them. Every repetition is
# bounded: a search holds the interpreter's lock, and a file may contain megabytes of white space.
SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "AVIF": rb"....ftyp(?=.{0,60}avi[fs])(?:avi[fs]|mif1|msf1)",
    "HEIC": rb"....ftyp(?:he[iv]|mif1|msf1)",
    "TIFF": rb"II\*\0|MM\0\*",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PDF": rb"%PDF",
    "SVG or XML": rb"(?:\xef\xbb\xbf)?\s{0,99}<(?:svg|\?xml|!--|!DOCTYPE svg)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ",
    f"an image read as text ({BYTES})": rb"(?:\xef\xbf\xbd|\xc2\x89)PNG|(?:\xef\xbf\xbd){3}|\xc3\xbf\xc3\x98",
    f"a data URI ({BYTES})": rb"data(?::|%3[Aa])",
    # of the formats that have a decoder
    f"base64 ({BYTES})": rb"\"?(?:iVBORw0KGg|/9j/|R0lGOD|UklGR|Qk[0-3][\w+/]{9}|AAAA.[GWm2]Z0eX)",
}

# How a reader of the error makes a picture that is accepted.
CONVERSIONS = {
    "HEIC": "export it as JPEG; an iPhone takes JPEGs with Settings, Camera, Formats, Most Compatible",
    "TIFF": "magick picture.tiff picture.png",
    "JPEG XL": "djxl picture.jxl picture.png",
    "JPEG 2000": "magick picture.jp2 picture.png",
    "SVG or XML": "rsvg-convert picture.svg -o picture.png",
    "PDF": "pdftoppm -png document.pdf page",
}


def check_size(content: bytes, max_bytes: int) -> None:
    """Raise PayloadTooLarge for more than `max_bytes` bytes, and UndecodableImage for an empty file."""
    if len(content) > max_bytes:
        raise PayloadTooLarge(f"the file has {len(content)} bytes, at most {max_bytes} are accepted")
    if not content:
        raise UndecodableImage("the file is empty")


def name_of(content: bytes) -> str | None:
    """What the first bytes begin, a key of SIGNATURES; None if they begin nothing that is known here."""
    return next((name for name, pattern in SIGNATURES.items() if re.match(pattern, content, re.DOTALL)), None)


def recognise(content: bytes) -> str:
    """The format, a key of DECODERS.

    Raises UnsupportedMediaType for other formats and for run-length encoded BMPs, and UndecodableImage for an empty
    file.
    """
    if not content:
        raise UndecodableImage("the image is empty")
    name = name_of(content) or "no image format known here"
    if name not in DECODERS:
        hint = f". To convert it: {CONVERSIONS[name]}" if name in CONVERSIONS else ""
        raise UnsupportedMediaType(f"this is {name}; accepted are {', '.join(DECODERS)}{hint}")
    if name == "BMP" and _is_run_length_encoded(content):
        raise UnsupportedMediaType("this BMP is run-length encoded (RLE): save it uncompressed, or as PNG")
    return name


def is_tiny(content: bytes) -> bool:
    """Whether the file is a PNG or JPEG within TINY_BYTES, TINY_PIXELS and TINY_PARTS, undamaged and without a profile.

    C code decodes these in linear time. The pixels of a progressive JPEG count 16 times. The size is the one that is
    found here: Pillow may find another in bytes that were made for it, so app.imaging.decoder compares them.
    """
    return _is_within(content, TINY_BYTES, TINY_PIXELS)


def is_minute(content: bytes) -> bool:
    """Whether the file is tiny and within MINUTE_BYTES and MINUTE_PIXELS."""
    return _is_within(content, MINUTE_BYTES, MINUTE_PIXELS)


def _is_within(content: bytes, most_bytes: int, most_pixels: int) -> bool:
    if len(content) > most_bytes or b"iCCP" in content or b"ICC_PROFILE" in content:
        return False
    if content.startswith(png.SIGNATURE):
        plain, size = png.is_plain(content, TINY_PARTS, TINY_METADATA), png.size
    elif content.startswith(jpeg.START):
        plain, size = jpeg.is_plain(content, TINY_PARTS, TINY_METADATA), jpeg.size
    else:
        return False
    return plain and 0 < math.prod(size(content)) <= most_pixels


def _is_run_length_encoded(content: bytes) -> bool:
    """Whether a BMP's pixels are run-length encoded (RLE8, RLE4, RLE24). Pillow decodes these in Python."""
    header_bytes, compression = int.from_bytes(content[14:18], "little"), int.from_bytes(content[30:34], "little")
    return header_bytes >= 40 and compression in (1, 2, 4)
