"""The image formats: the signature that identifies each, the checks before decoding, and the Pillow class that decodes.

recognise(content)      # "PNG"; raises UnsupportedMediaType for other formats
is_tiny(content)        # whether a thread of the service may decode it, without a process of its own
"""

import re
import struct
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

# Encoders write dozens of JPEG segments and thousands of PNG chunks at most. Pillow reads each one in Python, so a file
# of a few megabytes could hold enough of them to take seconds, and more memory than the picture.
MAX_JPEG_SEGMENTS = 2_000
MAX_JPEG_PADDING = 1 << 16  # bytes between segments
MAX_PNG_CHUNKS = 20_000
FILL_BYTES = re.compile(rb"\xff{1,%d}" % MAX_JPEG_PADDING)

# Up to these limits a PNG or JPEG takes a thread about 1 ms. A process would cost more.
TINY_BYTES = 1 << 14
TINY_PIXELS = 1 << 16
TINY_PARTS = 64  # segments or chunks: Pillow holds the interpreter's lock while it reads them


class LeanWebPImageFile(WebPImagePlugin.WebPImageFile):
    """Pillow's WebP image, but it frees its decoder, which holds the image twice, before it allocates the pixels."""

    def load_prepare(self) -> None:
        self._decoder = None
        super().load_prepare()


def _read_app1(self: JpegImagePlugin.JpegImageFile, marker: int) -> None:
    """Keep only the first EXIF segment, which has the orientation. Pillow would join them all, in quadratic time."""
    first = self.info.pop("exif", None)
    JpegImagePlugin.APP(self, marker)
    if first is not None:
        self.info["exif"] = first


# Pillow's table of marker handlers: the change affects every JPEG that this process opens.
JpegImagePlugin.MARKER[0xFFE1] = ("APP1", "EXIF or XMP", _read_app1)

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
PngImagePlugin.MAX_TEXT_MEMORY = 4 << 20  # with the default, 60 kB of comments can decompress to 256 MB

# Pillow's warnings about odd metadata quote the file. Printing them would put paths of the machine into the log, and
# Python keeps each distinct text for ever unless a filter ignores it.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.simplefilter("error", Image.DecompressionBombWarning)

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
}


def check_size(content: bytes, max_bytes: int) -> None:
    """Raise PayloadTooLarge for more than `max_bytes` bytes, and UndecodableImage for an empty file."""
    if len(content) > max_bytes:
        raise PayloadTooLarge(f"the file has {len(content)} bytes, at most {max_bytes} are accepted")
    if not content:
        raise UndecodableImage("the file is empty")


def recognise(content: bytes) -> str:
    """The format, a key of DECODERS.

    Raises UnsupportedMediaType for other formats and for run-length encoded BMPs. Raises UndecodableImage for an empty
    file, or one with more segments, padding or chunks than any encoder writes.
    """
    if not content:
        raise UndecodableImage("the image is empty")
    matching = (name for name, pattern in SIGNATURES.items() if re.match(pattern, content, re.DOTALL))
    name = next(matching, "no image format known here")
    if name not in DECODERS:
        raise UnsupportedMediaType(f"this is {name}; accepted are {', '.join(DECODERS)}")
    if name == "JPEG":
        _jpeg_size(content)
    elif name == "PNG":
        _check_png_chunks(content)
    elif name == "BMP" and _is_run_length_encoded(content):
        raise UnsupportedMediaType("this BMP is run-length encoded (RLE): save it uncompressed, or as PNG")
    return name


def is_tiny(content: bytes) -> bool:
    """Whether the file is a PNG or JPEG within TINY_BYTES, TINY_PIXELS and TINY_PARTS.

    C code decodes these in linear time. The pixels of a progressive JPEG count 16 times.
    """
    if len(content) > TINY_BYTES:
        return False
    try:
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            _check_png_chunks(content, TINY_PARTS)
            width, height = struct.unpack_from(">II", content, 16) if len(content) >= 24 else (0, 0)
        elif content.startswith(b"\xff\xd8\xff"):
            width, height = _jpeg_size(content, TINY_PARTS)
        else:
            return False
    except UndecodableImage:
        return False
    return bool(width * height <= TINY_PIXELS)


def _jpeg_size(content: bytes, most: int = MAX_JPEG_SEGMENTS) -> tuple[int, int]:
    """Width and height from the segments before the first scan (ITU-T T.81, annex B); 0, 0 if they cannot be followed.

    The height of a progressive JPEG is multiplied by 16: it has about that many scans. Raises UndecodableImage for more
    than `most` segments, or more padding between them than any encoder writes.
    """
    position, padding, size = 2, 0, (0, 0)
    for _ in range(most):
        fill = FILL_BYTES.search(content, position)
        if fill is None:
            return size
        marked = fill.end()
        padding += marked - 1 - position
        if padding > MAX_JPEG_PADDING or marked - fill.start() == MAX_JPEG_PADDING:
            raise UndecodableImage("the JPEG has more padding between its segments than any encoder writes")
        if marked >= len(content):
            return size
        marker, position = content[marked], marked + 1
        if marker == 0xDA:
            return size
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD9:
            continue  # a marker without a segment
        if len(content) < position + 7:
            return size
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, position + 3)
            size = (width, height if marker in (0xC0, 0xC1) else 16 * height)
        position += int.from_bytes(content[position : position + 2])
    raise UndecodableImage(f"the JPEG has more than {most:,} segments")


def _check_png_chunks(content: bytes, most: int = MAX_PNG_CHUNKS) -> None:
    """Raise UndecodableImage for more than `most` chunks."""
    position = 8
    for _ in range(most):
        length, kind = int.from_bytes(content[position : position + 4]), content[position + 4 : position + 8]
        position += 12 + length
        if position >= len(content) or kind == b"IEND":
            return
    raise UndecodableImage(f"the PNG has more than {most:,} chunks")


def _is_run_length_encoded(content: bytes) -> bool:
    """Whether a BMP's pixels are run-length encoded (RLE8, RLE4, RLE24). Pillow decodes these in Python."""
    header_bytes, compression = int.from_bytes(content[14:18], "little"), int.from_bytes(content[30:34], "little")
    return header_bytes >= 40 and compression in (1, 2, 4)
