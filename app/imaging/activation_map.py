"""Where an image speaks for a class: its class activation map, drawn over what the network saw.

    picture = draw(image, maps, class_id=3)     # a PNG of 256x256 pixels

The maps are exact, not estimated: each value is what its place adds to the class's logit, and their mean is the logit
(Zhou et al. 2016, arXiv:1512.04150). What the picture leaves out, and how it is scaled:

- Only what speaks for the class is coloured; values below zero count as zero.
- Dark blue is zero. Yellow is the largest value of this image, of any class at any place: so pictures of one image
  are comparable across its classes, and a class that nothing speaks for stays dark. Across images they are not.
- The map has few places (4x4 or 2x2), each of which sees most of the image: it shows regions, not outlines.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 256  # pixels: eight for each of the network's 32
OPACITY = 0.55  # of the colours over the image

# Viridis, by S. van der Walt and N. Smith (CC0), at every eighth: its lightness grows evenly, so that it reads the same
# for the colour-blind and in print.
COLOURS = np.array(
    [
        (68, 1, 84),
        (71, 45, 123),
        (59, 82, 139),
        (44, 114, 142),
        (33, 145, 140),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ],
    np.float64,
)


def draw(image: NDArray[np.uint8], maps: NDArray[np.float32], class_id: int) -> bytes:
    """A PNG, RGB, SIDE pixels square: the image in grey, its pixels enlarged as they are, under the map in colours.

    `image`: [H, W, 3], RGB, as the network saw it. `maps`: [classes, h, w] of that image. Raises IndexError for a
    class that there is not.
    """
    seen = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST)
    grey = np.asarray(seen, np.float64)[..., None]
    blended = grey + OPACITY * (colours(strength(maps, class_id)) - grey)
    buffer = io.BytesIO()
    Image.fromarray(blended.round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def strength(maps: NDArray[np.float32], class_id: int) -> NDArray[np.float64]:
    """float64 [SIDE, SIDE], 0 to 1: the class's map between its places bilinearly, as a share of the largest value."""
    # Zero first: between its places, what speaks against the class must not take away from what speaks for it.
    enlarged = Image.fromarray(maps[class_id].clip(0)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    largest = float(maps.max())
    if largest <= 0:
        return np.zeros((SIDE, SIDE))
    return np.clip(np.asarray(enlarged, np.float64) / largest, 0, 1)


def colours(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """RGB, 0 to 255, in a last dimension more, of values from 0 to 1."""
    anchors = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(values, anchors, channel) for channel in COLOURS.T], axis=-1)
