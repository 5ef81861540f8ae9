"""Colours of an embedded ICC profile, as sRGB: the colour space of the images that the network knows.

to_srgb(pixels, profile)    # uint8 RGB [k, height, width, 3]
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 1 << 20
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def to_srgb(pixels: NDArray[np.uint8], profile: bytes | None) -> NDArray[np.uint8]:
    """The same colours in sRGB. As they are without a profile, with one of sRGB, and with one that cannot be used.

    Colours outside sRGB become the nearest inside it (relative colorimetric).
    """
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        return pixels
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != "RGB" or "sRGB" in (source.profile.profile_description or ""):
            return pixels
        transform = ImageCms.buildTransform(source, SRGB, "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return pixels
    rows = Image.fromarray(pixels.reshape(-1, pixels.shape[2], 3))
    ImageCms.applyTransform(rows, transform, inPlace=True)
    return np.asarray(rows).reshape(pixels.shape)
