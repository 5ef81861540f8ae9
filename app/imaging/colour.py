"""Colours of an embedded ICC profile, as sRGB: the colour space of the images that the network knows.

to_srgb(pixels, profile)    # uint8 RGB [k, height, width, 3]
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 1 << 20
PROBES = np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3), -1).astype(np.uint8).reshape(6, 36, 3)
ROUNDING = 2  # levels by which a profile of sRGB may change the probes
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def to_srgb(pixels: NDArray[np.uint8], profile: bytes | None) -> NDArray[np.uint8]:
    """The same colours in sRGB. As they are without a profile, with one of sRGB, and with one that cannot be used.

    Colours outside sRGB become the nearest inside it (relative colorimetric).
    """
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        return pixels
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != "RGB":
            return pixels
        transform = ImageCms.buildTransform(source, SRGB, "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return pixels
    # Names of profiles do not tell: there are linear ones called sRGB.
    if np.abs(_applied(transform, PROBES).astype(int) - PROBES).max() <= ROUNDING:
        return pixels
    return _applied(transform, pixels.reshape(-1, pixels.shape[2], 3)).reshape(pixels.shape)


def _applied(transform: ImageCms.ImageCmsTransform, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(pixels)
    ImageCms.applyTransform(image, transform, inPlace=True)
    return np.asarray(image)
