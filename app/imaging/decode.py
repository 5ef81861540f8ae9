"""From the bytes of an image file to RGB thumbnails, the network's input.

    image = EncodedImage.identify(content, max_pixels=25_000_000)  # reads the header, decodes nothing
    image.pixels                # what decoding will cost: charge it to a global budget, then
    image.thumbnails(views=3)   # uint8 [k, 32, 32, 3], k = image.view_count(3)

For any bytes, both calls return or raise a Problem. Any thread may call them. Hostile bytes can keep either busy for
seconds: app.imaging.decoder runs them in processes that it can kill.

- The first bytes alone choose one of six formats; file name and content type are ignored.
- Of an animation the first frame is decoded. EXIF orientation is applied, colour profiles are not.
- Transparent pixels become white, the background that cut-outs and icons are made for. The network knows it, too:
  3.7 % of CIFAR-10's training images have three or four white corners (245 and above in every channel), 0.3 %
  mid-grey ones (128, give or take 16).
- Of 16 bits the upper 8 are kept, in grey as in colour, so that both give the same picture.
- A picture that is cut short is refused, not completed with grey. PNG's checksums are compared. The other formats
  have none, so damage that still decodes is not noticed.
"""

import io
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageChops, ImageFile

from ..errors import ImageTooLarge, Problem, UndecodableImage
from .avif import largest_av1_frame
from .formats import DECODERS, recognise

MAX_SIDE = 10_000
THUMBNAIL_SIDE = 64  # up to here an image is one view, however many a photo gets
ENOUGH_SIDE = 256  # larger images shrink by a whole factor to no less than this, eight times what is needed
BAND_PIXELS = 1 << 20
MAX_SCANS = 64  # of a JPEG; encoders write a dozen


# Memory that decoding takes at its peak, in Pillow's four bytes a pixel (measured): these keep frames of their own.
COST = {"WEBP": 3, "AVIF": 5}
MAX_COST = 3  # no image may take more memory than this many times max_pixels: an AVIF has fewer pixels at most

# Pillow brings pixels of these depths to 8 bits, but not the one that tRNS calls transparent.
TO_EIGHT_BITS = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class EncodedImage:
    """An image file whose header was read and whose size was checked; nothing is decoded yet."""

    content: bytes = field(repr=False)
    format: str  # a key of DECODERS
    width: int  # as stored, before orientation
    height: int
    pixels: int  # memory that decoding takes, in pixels of four bytes; at most max_pixels

    @classmethod
    def identify(cls, content: bytes, max_pixels: int) -> "EncodedImage":
        """Read the header. Raises UnsupportedMediaType, ImageTooLarge or UndecodableImage."""
        kind = recognise(content)
        with _problems_only(kind):
            image = _open(kind, content)
            width, height = image.size
            frame = max(width * height, largest_av1_frame(content) if kind == "AVIF" else 0)
            accepted = max_pixels * MAX_COST // max(MAX_COST, COST.get(kind, 1))
            if frame > accepted or max(width, height) > MAX_SIDE:
                raise ImageTooLarge(
                    f"the {kind} has {frame:,} pixels ({width} x {height});"
                    f" accepted are {accepted:,} pixels and {MAX_SIDE:,} on a side"
                )
            cost = _jpeg_cost(image, content) if kind == "JPEG" else frame * COST.get(kind, 1)
            image.verify()  # compares PNG's checksums, which decoding does not
        # Capped, so that a budget of max_pixels lets in every accepted image, if need be alone.
        return cls(content, kind, width, height, min(cost, max_pixels))

    def view_count(self, views: int) -> int:
        """How many thumbnails there will be: `views` of a photo, one of what is a thumbnail itself."""
        return 1 if max(self.width, self.height) <= THUMBNAIL_SIDE else views

    def thumbnails(self, views: int, height: int = 32, width: int = 32) -> npt.NDArray[np.uint8]:
        """Decode to uint8 RGB [k, height, width, 3]; `views` is 1 or 3 and k is view_count(views).

        In this order: the whole image squashed, its largest centred square, its central 70 % (of each side).
        Resized bilinearly with antialiasing; an image that has the wanted size comes out bit for bit.
        Raises UndecodableImage or ImageTooLarge.
        """
        with _problems_only(self.format):
            image = _open(self.format, self.content)
            drafted = _draft(image)
            _load(image)
            orientation = _orientation(image)
            small, factor = _shrink(image)
        # In pixels of the small image; not whole, as its last row and column may stand for less of the original.
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
        return np.stack(thumbnails)


@contextmanager
def _problems_only(kind: str) -> Iterator[None]:
    """Turns the dozen kinds of exception that Pillow raises for hostile bytes into problems."""
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
        content = content[:8] + b"avif" + content[12:]  # the still picture, never a video track beside it
    return DECODERS[kind](io.BytesIO(content))


def _draft(image: ImageFile.ImageFile) -> tuple[float, float]:
    """Let a JPEG decode at 1/2, 1/4 or 1/8 of its size, if that is enough. Returns that size before rounding up."""
    drafted = image.draft("RGB", (ENOUGH_SIDE, ENOUGH_SIDE))
    return drafted[1][2:] if drafted else image.size


def _jpeg_cost(image: ImageFile.ImageFile, content: bytes) -> int:
    """Memory that a JPEG takes, in pixels of four bytes. Raises ValueError if it is made to take for ever."""
    assert image.fp is not None
    layers, end = len(image.getbands()), image.fp.tell()  # Pillow has just read the first scan's header
    header = struct.pack(">HHB", 0xFFDA, 6 + 2 * layers, layers)
    if "progressive" not in image.info and content.startswith(header, end - 8 - 2 * layers):
        return math.ceil(math.prod(_draft(image)))
    # In several scans: libjpeg keeps the coefficients of the whole picture, and every scan goes over all of them.
    if content.count(b"\xff\xda", end) > MAX_SCANS:
        raise ValueError("too many scans")
    return 2 * math.prod(image.size)


def _load(image: ImageFile.ImageFile) -> None:
    depth = image.tile[0].args if image.tile else None
    image.load()
    if isinstance(depth, str) and depth in TO_EIGHT_BITS and "transparency" in image.info:
        key, scale = image.info["transparency"], TO_EIGHT_BITS[depth]
        image.info["transparency"] = tuple(int(v * scale) for v in key) if isinstance(key, tuple) else int(key * scale)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; upright (1) where EXIF is missing or makes no sense."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata is no damage to the picture
        return 1
    return orientation if orientation in TRANSPOSITIONS else 1


def _shrink(image: Image.Image) -> tuple[Image.Image, int]:
    """The image as RGB or RGBa, shrunk by the largest whole factor that leaves ENOUGH_SIDE; and that factor.

    In bands: a full-size copy in another mode would double the memory that an image takes.
    """
    width, height = image.size
    factor = max(1, min(width, height) // ENOUGH_SIDE)
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
    """RGB; or RGBa, with colours multiplied by alpha, lest what is hidden bleed into what is seen when resized."""
    if image.mode.startswith("I"):
        grey, key = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray((grey >> 8).clip(0, 255).astype(np.uint8))
        if key is not None:
            image.putalpha(Image.fromarray(np.where(grey == key, 0, 255).astype(np.uint8)))
    elif image.mode == "CMYK" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for one of Adobe's, which are inverted
    if image.has_transparency_data:
        return image.convert("RGBA").convert("RGBa")
    return image.convert("RGB")


def _on_white(image: Image.Image) -> npt.NDArray[np.uint8]:
    """RGB or RGBa to uint8 [height, width, 3]."""
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    if image.mode == "RGB":
        return pixels
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    return colour + (255 - alpha)  # never above 255: multiplied by alpha, colours do not exceed it
