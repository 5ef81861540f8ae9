"""What a run learns from and is measured with, whichever pictures these are: CIFAR-10's, or of a user's own classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from training.data.cifar10 import LabelledImages, Split
from training.data.description import Description


class Others(NamedTuple):
    """Pictures of none of the classes: those that training sees, and those that measure it."""

    training: LabelledImages
    report: LabelledImages


class DataSet(Protocol):
    """Images are uint8 [N, side, side, 3]. All but `folder` and `description` raise TrainingError for unusable data."""

    @property
    def folder(self) -> Path: ...

    @property
    def description(self) -> Description: ...

    @property
    def training(self) -> LabelledImages: ...

    @property
    def test(self) -> LabelledImages: ...

    @property
    def others(self) -> Others | None: ...

    @property
    def warning(self) -> str | None:
        """What people should know of the images before they train with them, on one line."""
        ...

    def split(self, seed: int) -> Split:
        """Indices into `training`."""
        ...

    def membership(self, parts: Split) -> Mapping[str, Sequence[int | str]]:
        """The images of each part, for split.json."""
        ...

    def balance(self, parts: Split) -> dict[str, Any]:
        """What a bundle says of the numbers of images; empty where everybody knows them."""
        ...
