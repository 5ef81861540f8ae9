"""Class activation maps, drawn over the network's input: the regions of an image that are evidence for a class.

    picture = draw(image, maps, class_id=3)     # a PNG of 256x256 pixels

The maps are exact, not estimated. Each value is the contribution of one location to the class's logit, and their mean
is the logit (Zhou et al. 2016, arXiv:1512.04150). The picture shows them with these limits:

- Only evidence for the class is coloured. Negative values count as zero.
- Dark blue is zero. Yellow is the largest value of this image, over all classes and locations. So the pictures of one
  image are comparable across classes, and a class without evidence stays dark. Pictures of different images are not
  comparable.
- The map has few locations (2x2 to 7x7). Each location sees most of the image, so the map shows regions, not outlines.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 256  # pixels
OPACITY = 0.55  # the weight of the colours over the image

# The colour map Viridis by S. van der Walt and N. Smith (CC0), sampled at multiples of 1/8. Its lightness grows evenly,
# so it works in print and for colour-blind readers.
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
    """A PNG in RGB, SIDE pixels square: the enlarged image in grey, blended with the coloured map.

    `image`: uint8 RGB [H, W, 3], the network's input. `maps`: float32 [classes, h, w], the class maps of that image.
    Raises IndexError if `class_id` is out of range.
    """
    enlarged = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST)
    grey = np.asarray(enlarged, np.float64)[..., None]
    blended = grey + OPACITY * (colours(strength(maps, class_id)) - grey)
    buffer = io.BytesIO()
    Image.fromarray(blended.round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def strength(maps: NDArray[np.float32], class_id: int) -> NDArray[np.float64]:
    """float64 [SIDE, SIDE], 0 to 1: the class's map, interpolated bilinearly, as a fraction of the largest value.

    `maps`: float32 [classes, h, w]. All zeros if no value is positive.
    """
    # Clipped before interpolation: evidence against the class must not reduce the evidence for it next to it.
    enlarged = Image.fromarray(maps[class_id].clip(0)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    largest = float(maps.max())
    if largest <= 0:
        return np.zeros((SIDE, SIDE))
    return np.clip(np.asarray(enlarged, np.float64) / largest, 0, 1)


def colours(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [..., 3], RGB from 0 to 255, for values [...] from 0 to 1."""
    anchors = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(values, anchors, channel) for channel in COLOURS.T], axis=-1)
