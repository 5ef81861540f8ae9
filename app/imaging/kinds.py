"""The two kinds of pictures. The model was trained and measured on each, and makes different promises for them.

kind_of(32, 32)     # "thumbnails": the size of CIFAR-10's images
kind_of(64, 48)     # "photographs"
"""

from collections.abc import Mapping
from typing import Literal

Kind = Literal["thumbnails", "photographs"]
Sizes = Mapping[Kind, tuple[int, int]]  # height and width of the network's input, in pixels

PHOTOGRAPH_SIDE = 64  # pixels


def kind_of(width: int, height: int) -> Kind:
    """The kind of a picture, from its size in pixels alone: a photograph has a side of PHOTOGRAPH_SIDE or more."""
    return "photographs" if max(width, height) >= PHOTOGRAPH_SIDE else "thumbnails"
