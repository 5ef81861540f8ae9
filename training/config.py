"""Everything that decides a run's weights, in one frozen dataclass that is saved whole in the bundle.

The defaults are a recipe that was measured: docs/runs.md has its results.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, cast, get_args

from app.bundle.reader import Architecture
from training.errors import TrainingError

Precision = Literal["float32", "bfloat16"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB / 255, as torchvision's pretrained weights expect it
IMAGENET_STD = (0.229, 0.224, 0.225)

# What every run did that was recorded before the field was there, where that is not the default.
BEFORE: dict[str, Any] = {"enlarge": 1, "zoom": 1.0, "colour": 0.0}


@dataclass(frozen=True)
class Config:
    """Raises TrainingError when a value is outside its range."""

    stem_stride: int = 2  # 1 or 2
    stage2_stride: int = 2  # 1 or 2
    enlarge: int = 4  # times 32 pixels, inside the network; 4: 98 M multiply-adds, 2: 24.5 M
    epochs: int = 10  # passes over the training split
    batch_size: int = 64  # images a step
    lr: float = 1e-3  # peak learning rate of AdamW
    warmup: float = 0.08  # fraction of all steps over which the rate rises from zero
    weight_decay: float = 0.05  # on convolution and linear filters only
    beta1: float = 0.9
    beta2: float = 0.99  # 0.999 remembers longer than a run of a few thousand steps
    label_smoothing: float = 0.0  # more would cost the ranking of confidences (arXiv:2403.14715)
    ema_decay: float = 0.992  # of the averaged weights, per update
    ema_every: int = 4  # steps between updates: cheaper, and 0.992 per 4 is 0.998 per step
    flip: bool = True  # mirror every image in every second epoch
    shift: int = 4  # pixels, at most, in each direction
    zoom: float = 1.2  # largest factor by which half of the images are enlarged or shrunk; 1: none
    colour: float = 0.1  # largest relative change of brightness, contrast, saturation; 0: none
    cutout: int = 10  # side of the square hidden from the network, pixels
    views: int = 0  # augmented views of each image, seen in turn; 0: a new one in every epoch
    teacher_weight: float = 0.9  # of the teacher's share in the loss, where there is a teacher
    teacher_temperature: float = 2.0  # that softens the teacher's answers and ours
    precision: Precision = "float32"  # of a step; bfloat16 is 1.3 times faster on CPUs that compute in it
    seed: int = 0  # of the new layers, the order of images, augmentation
    split_seed: int = 0  # of the three-way split; results of runs compare only under one split

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "stem_stride": (1, 2),
            "stage2_stride": (1, 2),
            "enlarge": (1, 4),
            "epochs": (1, 1000),
            "batch_size": (2, 4096),
            "lr": (0, 10),
            "warmup": (0, 1),
            "weight_decay": (0, 10),
            "beta1": (0, 0.9999),
            "beta2": (0, 0.99999),
            "label_smoothing": (0, 0.9),
            "ema_decay": (0, 0.99999),
            "ema_every": (1, 1000),
            "shift": (0, 31),
            "zoom": (1, 4),
            "colour": (0, 1),
            "cutout": (0, 32),
            "views": (0, 1000),
            "teacher_weight": (0, 1),
            "teacher_temperature": (0.1, 100),
            "seed": (0, 2**31 - 1),
            "split_seed": (0, 2**31 - 1),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:  # false for NaN too
                raise TrainingError(f"{name} is {value}: it must be from {low:g} to {high:g}")

        if self.precision not in get_args(Precision):
            raise TrainingError(f"precision is {self.precision}: it must be one of {', '.join(get_args(Precision))}")

    @property
    def architecture(self) -> Architecture:
        return Architecture(
            stem_stride=cast(Literal[1, 2], self.stem_stride),
            stage2_stride=cast(Literal[1, 2], self.stage2_stride),
            enlarge=cast(Literal[1, 2, 3, 4], self.enlarge),
        )

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> Self:
        """The configuration of a run from its record (an `as_dict`), which may be older than some fields.

        Raises TypeError for a field that is not known here.
        """
        return cls(**(BEFORE | dict(values)))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, other: dict[str, Any]) -> list[str]:
        """One phrase a field in which `other` (an `as_dict`, perhaps of an older record) is not this configuration."""
        mine = self.as_dict()
        theirs = {field.name: field.default for field in fields(self)} | BEFORE | other
        return [
            f"{name} is {mine.get(name, 'absent')} here and {value} there"
            for name, value in theirs.items()
            if mine.get(name) != value
        ]
