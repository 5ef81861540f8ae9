"""From the bytes of an image file to RGB thumbnails, the network's input.

    image = EncodedImage.identify(content, max_pixels=25_000_000)  # reads the header, decodes nothing
    image.pixels                # the memory that decoding takes: charge it to a global budget, then
    image.thumbnails(views=3)   # uint8 [k, 32, 32, 3], k = image.view_count(3)

For any bytes, both calls return or raise a Problem. They are thread-safe. Hostile bytes can keep either call busy for
seconds, so app.imaging.decoder runs them in processes that it can kill.

- The first bytes alone choose one of six formats. File name and content type are ignored.
- Only the first frame of an animation is decoded. EXIF orientation is applied; XMP's is not, as in browsers. Colours
  of an embedded ICC profile for RGB are converted to sRGB.
- Transparent pixels become white: cut-outs and icons are made for a white background. The network knows white, too:
  3.7 % of CIFAR-10's training images have three or four white corners (245 and above in every channel), 0.3 % have
  mid-grey ones (128 ± 16).
- Images with 16 bits a channel keep the upper 8, in grey as in colour, so that both give the same picture.
- An image that lacks pixels is refused, not filled up with grey. One that only lacks the mark of its end is decoded.
  The checksums of a PNG's pixels are verified. The other formats have none, so corrupt data that still decodes goes
  unnoticed. Corrupt metadata is left out.
"""

import io
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageChops, ImageFile

from ..errors import ImageTooLarge, Problem, UndecodableImage
from . import jpeg, png, webp
from .avif import largest_av1_frame
from .colour import to_srgb
from .formats import DECODERS, recognise
from .kinds import Kind, kind_of

MAX_SIDE = 10_000
REDUCED_SIDE = 256  # larger images are first reduced by an integer factor; the shorter side keeps at least this
BAND_PIXELS = 1 << 20

# Peak memory of decoding, in frames of four bytes a pixel (measured). Decoders of other formats keep one frame.
PEAK_FRAMES = {"WEBP": 3, "AVIF": 5}
MAX_PEAK_FRAMES = 3  # no image may take more than this times max_pixels: so an AVIF may have fewer pixels

COLOURED = ("RGB", "RGBA", "P", "PA")  # modes of images whose profile is one for RGB
# Pillow scales pixels of these raw modes to 8 bits, but not the transparent value that the tRNS chunk names.
TRANSPARENCY_SCALES = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}

ESSENTIAL = {"JPEG": jpeg.essential, "PNG": png.essential, "WEBP": webp.essential}
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Decoded(NamedTuple):
    """size: in pixels, before JPEG's scaled decoding rounded it up; small: the image reduced by `factor`."""

    image: ImageFile.ImageFile
    size: tuple[float, float]
    small: Image.Image
    factor: int


@dataclass(frozen=True)
class EncodedImage:
    """An image file that is not decoded yet. Its header has been read and its size checked."""

    content: bytes = field(repr=False)  # of a JPEG, PNG or WebP, what its picture needs
    format: str  # a key of DECODERS
    width: int  # as stored, before orientation
    height: int
    pixels: int  # peak memory of decoding, in pixels of four bytes; at most max_pixels
    effort: int  # pixels that decoding computes: those of a JPEG with several scans count jpeg.USUAL_SCANS times

    @classmethod
    def identify(cls, content: bytes, max_pixels: int) -> "EncodedImage":
        """Read the header. `max_pixels` is the budget of one image, in pixels of four bytes.

        Raises UnsupportedMediaType, ImageTooLarge or UndecodableImage.
        """
        kind = recognise(content)
        with _pillow_errors_as_problems(kind):
            if kind in ESSENTIAL:
                content = ESSENTIAL[kind](content)
            image = _open(kind, content)
            width, height = image.size
            frame = max(width * height, largest_av1_frame(content) if kind == "AVIF" else 0)
            accepted = max_pixels * MAX_PEAK_FRAMES // max(MAX_PEAK_FRAMES, PEAK_FRAMES.get(kind, 1))
            if frame > accepted or max(width, height) > MAX_SIDE:
                raise ImageTooLarge(
                    f"the {kind} has {frame:,} pixels ({width} x {height});"
                    f" accepted are {accepted:,} pixels and {MAX_SIDE:,} on a side"
                )
            peak, effort = frame * PEAK_FRAMES.get(kind, 1), frame
            if kind == "JPEG":
                scans = _has_several_scans(image, content)
                # Of several, libjpeg keeps the coefficients of the whole picture, and each passes over all of them.
                peak = 2 * frame if scans else math.ceil(math.prod(_draft(image)))
                effort = jpeg.USUAL_SCANS * frame if scans else frame
            image.verify()  # verifies the checksums of a PNG; decoding does not
        # Capped, so that every accepted image fits a budget of max_pixels, at least alone.
        return cls(content, kind, width, height, min(peak, max_pixels), effort)

    @property
    def kind(self) -> Kind:
        return kind_of(self.width, self.height)

    def view_count(self, views: int) -> int:
        """How many thumbnails `thumbnails(views)` returns: `views` for a photograph, else 1."""
        return views if self.kind == "photographs" else 1

    def thumbnails(self, views: int, height: int = 32, width: int = 32) -> npt.NDArray[np.uint8]:
        """Decode to uint8 RGB [k, height, width, 3]; `views` is 1 or 3 and k is view_count(views).

        The crops, in this order: the whole image squashed to the shape, its largest centred square, the central 70 %
        of each side. They are resized bilinearly with antialiasing. An image that already has the target size is
        returned bit for bit. Raises UndecodableImage or ImageTooLarge.
        """
        with _pillow_errors_as_problems(self.format):
            image, drafted, small, factor = self._decode_whole()
            orientation = _orientation(image)
            profile = image.info.get("icc_profile") if image.mode in COLOURED else None
        # The size in pixels of the small image. It may be fractional: the last row and column can cover less than
        # `factor` pixels of the original.
        right, bottom = drafted[0] / factor, drafted[1] / factor
        side = min(right, bottom)
        size = (width, height) if orientation < 5 else (height, width)
        thumbnails = []
        for w, h in [(right, bottom), (side, side), (0.7 * right, 0.7 * bottom)][: self.view_count(views)]:
            box = ((right - w) / 2, (bottom - h) / 2, (right + w) / 2, (bottom + h) / 2)
            view = small.resize(size, Image.Resampling.BILINEAR, box)
            if orientation in TRANSPOSITIONS:
                view = view.transpose(TRANSPOSITIONS[orientation])
            thumbnails.append(_on_white(view))
        return to_srgb(np.stack(thumbnails), profile)

    def _decode_whole(self) -> Decoded:
        """Raises ValueError if pixels are missing."""
        if self.format == "JPEG":
            for content, *others in jpeg.completions(self.content):
                smalls = [self._decode(other).small for other in others]  # whole ones would take memory together
                decoded = self._decode(content)
                if not any(ImageChops.difference(decoded.small, small).getbbox() for small in smalls):
                    return decoded
            raise ValueError("the data ends before the last pixel")
        decoded = self._decode(self.content)
        if self.format == "PNG" and png.has_empty_end(decoded.image):
            del decoded  # two of them would take twice the memory
            decoded = self._decode(self.content, png.FilledImageFile)
            if not png.has_empty_end(decoded.image):
                raise ValueError("the data ends before the last row")
        return decoded

    def _decode(self, content: bytes, decoder: type[ImageFile.ImageFile] | None = None) -> Decoded:
        image = _open(self.format, content) if decoder is None else decoder(io.BytesIO(content))
        image.decodermaxblock = len(content)  # libjpeg cannot wait for more of an arithmetic-coded file
        drafted = _draft(image)
        _load(image)
        return Decoded(image, drafted, *_reduce(image))


@contextmanager
def _pillow_errors_as_problems(kind: str) -> Iterator[None]:
    """Turn every exception that Pillow raises for hostile bytes into ImageTooLarge or UndecodableImage."""
    try:
        yield
    except Problem:
        raise
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"the {kind} takes more memory to decode than is allowed") from error
    except Exception as error:
        raise UndecodableImage(f"the {kind} is cut short or corrupt") from error


def _open(kind: str, content: bytes) -> ImageFile.ImageFile:
    if kind == "AVIF" and content[8:12] != b"avif":
        content = content[:8] + b"avif" + content[12:]  # decode the still picture, never a video track beside it
    return DECODERS[kind](io.BytesIO(content))


def _draft(image: ImageFile.ImageFile) -> tuple[float, float]:
    """Let a JPEG decode at 1/2, 1/4 or 1/8 of its size if REDUCED_SIDE allows. Returns that size before rounding up."""
    drafted = image.draft("RGB", (REDUCED_SIDE, REDUCED_SIDE))
    return drafted[1][2:] if drafted else image.size


def _has_several_scans(image: ImageFile.ImageFile, content: bytes) -> bool:
    """Of a JPEG. Raises ValueError for more than jpeg.MAX_SCANS."""
    assert image.fp is not None
    layers, end = len(image.getbands()), image.fp.tell()  # Pillow has just read the header of the first scan
    header = struct.pack(">HHB", 0xFFDA, 6 + 2 * layers, layers)
    if "progressive" not in image.info and content.startswith(header, end - 8 - 2 * layers):
        return False
    if content.count(b"\xff\xda", end) > jpeg.MAX_SCANS:
        raise ValueError("too many scans")
    return True


def _load(image: ImageFile.ImageFile) -> None:
    raw_mode = image.tile[0].args if image.tile else None
    image.load()
    if isinstance(raw_mode, str) and raw_mode in TRANSPARENCY_SCALES and "transparency" in image.info:
        key, scale = image.info["transparency"], TRANSPARENCY_SCALES[raw_mode]
        image.info["transparency"] = tuple(int(v * scale) for v in key) if isinstance(key, tuple) else int(key * scale)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. It is 1 (upright) if EXIF is missing or invalid."""
    exif = Image.Exif()  # image.getexif() would also search XMP
    try:
        exif.load(image.info.get("exif", b""))
        orientation = exif.get(ExifTags.Base.Orientation)
    except Exception:  # with corrupt metadata the picture itself may still be good
        return 1
    return orientation if orientation in TRANSPOSITIONS else 1


def _reduce(image: Image.Image) -> tuple[Image.Image, int]:
    """The image as RGB or RGBa, reduced by the largest integer factor that keeps REDUCED_SIDE; and that factor.

    It works in bands: a full-size copy in another mode would double the memory that an image takes.
    """
    width, height = image.size
    factor = max(1, min(width, height) // REDUCED_SIDE)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image.reduce(factor), factor
    rows = factor * max(1, BAND_PIXELS // (width * factor))
    small = None
    for top in range(0, height, rows):
        band = _flatten(image.crop((0, top, width, min(top + rows, height)))).reduce(factor)
        small = small or Image.new(band.mode, (math.ceil(width / factor), math.ceil(height / factor)))
        small.paste(band, (0, top // factor))
    assert small is not None
    return small, factor


def _flatten(image: Image.Image) -> Image.Image:
    """Convert to RGB, or to RGBa if there is transparency.

    RGBa has its colours multiplied by alpha, so resizing does not mix hidden colours into visible pixels.
    """
    if image.mode.startswith("I"):
        grey, key = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray((grey >> 8).clip(0, 255).astype(np.uint8))
        if key is not None:
            image.putalpha(Image.fromarray(np.where(grey == key, 0, 255).astype(np.uint8)))
    elif image.mode == "CMYK" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow inverts every CMYK JPEG, but only Adobe's are stored inverted
    if image.has_transparency_data:
        return image.convert("RGBA").convert("RGBa")
    return image.convert("RGB")


def _on_white(image: Image.Image) -> npt.NDArray[np.uint8]:
    """uint8 RGB [height, width, 3] from an RGB or RGBa image, over a white background."""
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    if image.mode == "RGB":
        return pixels
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    return colour + (255 - alpha)  # never above 255: colours multiplied by alpha are at most alpha
