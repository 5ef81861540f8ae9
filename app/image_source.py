"""The images that a Python program passes, as the bytes of image files."""

import io
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[np.uint8]"
)
"""A path; an encoded image as bytes or in a binary file; a PIL image; or an array, uint8 [height, width, 3] RGB or
[height, width] grey."""

PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def encoded(image: ImageSource) -> bytes:
    """The file's or the given bytes; a PIL image or an array as PNG. A file object is read from its beginning.

    Raises OSError for a file that cannot be read, TypeError for what is no image, ValueError for an array of another
    shape or dtype, and ImportError if a PNG is to be made and Pillow is missing.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if hasattr(image, "read"):
        return _read(image)
    if hasattr(type(image), "__array_interface__"):  # PIL images have it, too
        return _png(image)
    raise TypeError(
        f"an image is a path, bytes, a binary file, a PIL image or a uint8 array, not {type(image).__name__}"
    )


def is_one_image(images: object) -> bool:
    """Whether it is an image, and not several; most images can be iterated over, but not by images."""
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(images, "read"):
        return True
    # A PIL image has the interface of arrays, but no number of dimensions.
    shape = getattr(images, "shape", ()) if hasattr(type(images), "__array_interface__") else None
    return shape is not None and (len(shape) < 3 or tuple(shape[2:]) == (3,))


def file_name(image: ImageSource, index: int) -> str:
    """The name that the service's problem documents use for the image."""
    path = image if isinstance(image, str | os.PathLike) else getattr(image, "name", None)
    if not isinstance(path, str | os.PathLike):
        return f"{index}"
    return Path(path).name.encode(errors="backslashreplace").decode()  # a file's name need not be Unicode


def _read(file: Any) -> bytes:
    if file.seekable():
        file.seek(0)  # who has just written an image into a BytesIO is at its end
    content = file.read()
    if not isinstance(content, bytes):
        raise TypeError('an image file is opened in binary mode, "rb"')
    return content


def _png(image: Any) -> bytes:
    try:
        from PIL import Image, ImageOps  # the client needs it for nothing else
    except ImportError:
        raise ImportError("an array becomes a PNG, which needs Pillow: pip install pillow") from None
    if isinstance(image, Image.Image):
        picture = ImageOps.exif_transpose(image)  # the PNG carries no orientation
    else:
        _check_array(image)
        picture = Image.fromarray(image)
    buffer = io.BytesIO()
    (picture if picture.mode in PNG_MODES else picture.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def _check_array(array: Any) -> None:
    interface = array.__array_interface__
    shape, dtype = tuple(interface["shape"]), interface["typestr"]
    if dtype != "|u1" or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)) or 0 in shape:
        raise ValueError(
            "an array is uint8 [height, width, 3] (RGB) or uint8 [height, width] (grey), from 0 to 255,"
            f" not {getattr(array, 'dtype', dtype)} {list(shape)}"
        )
