"""The images that a caller passes, as bytes to send."""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from PIL import Image

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image"
"""A path, an encoded image, or a PIL image."""

PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def encoded(image: ImageSource) -> bytes:
    """The file's or the given bytes; a PIL image as PNG. Raises OSError for a file that cannot be read."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    from PIL import ImageOps  # the client itself does not need Pillow

    upright = ImageOps.exif_transpose(image)  # the PNG carries no orientation
    buffer = io.BytesIO()
    (upright if upright.mode in PNG_MODES else upright.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def file_name(image: ImageSource, index: int) -> str:
    """The name that the service's problem documents use for the image."""
    if not isinstance(image, str | os.PathLike):
        return f"{index}"
    return Path(image).name.encode(errors="backslashreplace").decode()  # a file's name need not be Unicode
