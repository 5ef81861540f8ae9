"""Everything that decides a run's weights, in one frozen dataclass that is saved whole in the bundle.

The defaults are a recipe that was measured: docs/log/runs.md has its results.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, Self, cast, get_args

from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from app.bundle.manifest import Architecture
from training.errors import TrainingError

Precision = Literal["float32", "bfloat16"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB / 255, as torchvision's pretrained weights expect it
IMAGENET_STD = (0.229, 0.224, 0.225)
ENLARGED_SIDE = 128  # pixels, the largest that a network enlarges its input to

# Values for fields that older records lack, where they differ from today's default.
BEFORE: dict[str, Any] = {"enlarge": 1, "zoom": 1.0, "colour": 0.0}


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class Config:
    """Each field's default, range and description; the command line's options are made from them.

    Raises TrainingError when a value is outside its range, or a field is unknown.
    """

    stem_stride: int = Field(default=2, ge=1, le=2, description="Stride of the first convolution.")
    stage2_stride: int = Field(default=2, ge=1, le=2, description="Stride of the second stage.")
    input_size: int = Field(
        default=32, ge=32, le=224, description="Pixels of each side of the network's input; with --data."
    )
    enlarge: int = Field(
        default=4,
        ge=1,
        le=4,
        description="The network enlarges its input by this factor, but not beyond 128 pixels: of 32x32 pixels, 4 "
        "costs 98 M multiply-adds, 2 costs 24.5 M.",
    )
    epochs: int = Field(default=10, ge=1, le=1000, description="Passes over the training split.")
    batch_size: int = Field(default=64, ge=2, le=4096, description="Images per step.")
    lr: float = Field(default=1e-3, ge=0, le=10, description="Peak learning rate of AdamW.")
    warmup: float = Field(
        default=0.08, ge=0, le=1, description="Fraction of all steps over which the learning rate rises from zero."
    )
    weight_decay: float = Field(
        default=0.05, ge=0, le=10, description="Weight decay of convolution and linear filters."
    )
    beta1: float = Field(default=0.9, ge=0, le=0.9999, description="AdamW's decay rate of the gradients' mean.")
    # 0.999 would remember longer than a run of a few thousand steps.
    beta2: float = Field(default=0.99, ge=0, le=0.99999, description="AdamW's decay rate of the gradients' squares.")
    # With label smoothing, confidences rank right and wrong answers worse (arXiv:2403.14715).
    label_smoothing: float = Field(default=0.0, ge=0, le=0.9, description="Label smoothing; 0 turns it off.")
    ema_decay: float = Field(default=0.992, ge=0, le=0.99999, description="Decay of the averaged weights per update.")
    # Every fourth step is cheaper, and 0.992 per 4 steps is 0.998 per step.
    ema_every: int = Field(default=4, ge=1, le=1000, description="Steps between updates of the averaged weights.")
    flip: bool = Field(default=True, description="Mirror every image in every second epoch.")
    shift: int = Field(default=4, ge=0, le=31, description="Largest shift in each direction, in 32nds of the side.")
    zoom: float = Field(
        default=1.2,
        ge=1,
        le=4,
        description="Largest factor by which half of the images are zoomed in or out; 1 turns it off.",
    )
    colour: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Largest relative change of brightness, contrast and saturation; 0 turns it off.",
    )
    cutout: int = Field(
        default=10, ge=0, le=32, description="Side of the square that is hidden, in 32nds; 0 turns it off."
    )
    photograph_batch: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Photographs of --photographs in each step beside its images; three of five are of the classes. "
        "With --data, pictures of other/; 0 takes a quarter of the batch.",
    )
    views: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Augmented views of each image, which epochs use in turn; 0 makes a new view in every epoch.",
    )
    teacher_weight: float = Field(
        default=0.9, ge=0, le=1, description="The teacher's share in the loss, with --teacher."
    )
    teacher_temperature: float = Field(
        default=2.0,
        ge=0.1,
        le=100,
        description="Temperature that softens the teacher's and the student's probabilities.",
    )
    precision: Precision = Field(
        default="float32",
        description="Precision of a step. bfloat16 is faster where the hardware computes in it (avx512_bf16 or "
        "amx_bf16 in lscpu).",
    )
    seed: int = Field(
        default=0, ge=0, le=2**31 - 1, description="Seed of new layers, of the order of images and of augmentation."
    )
    split_seed: int = Field(
        default=0,
        ge=0,
        le=2**31 - 1,
        description="Seed of the three-way split; only runs of one split can be compared.",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _one_line(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            first = error.errors()[0]
            name, value = first["loc"][0], first["input"]
            if name not in FIELDS:
                raise TrainingError(f"{name} is not a field of the configuration") from None
            raise TrainingError(f"{name} is {value}: it must be {allowed(FIELDS[str(name)])}") from None

    @property
    def architecture(self) -> Architecture:
        enlarge = min(self.enlarge, max(1, ENLARGED_SIDE // self.input_size))
        return Architecture(
            stem_stride=cast(Literal[1, 2], self.stem_stride),
            stage2_stride=cast(Literal[1, 2], self.stage2_stride),
            enlarge=cast(Literal[1, 2, 3, 4], enlarge),
        )

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> Self:
        """The configuration of a run from its record (an `as_dict`), which may be older than some fields.

        Raises TrainingError for an unknown field.
        """
        return cls(**(BEFORE | dict(values)))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, other: dict[str, Any]) -> list[str]:
        """One phrase for each field that differs in `other` (an `as_dict`, perhaps of an older record)."""
        mine = self.as_dict()
        theirs = {name: field.default for name, field in FIELDS.items()} | BEFORE | other
        return [
            f"{name} is {mine.get(name, 'absent')} here and {value} there"
            for name, value in theirs.items()
            if mine.get(name) != value
        ]


FIELDS: Mapping[str, FieldInfo] = Config.__pydantic_fields__  # type: ignore[attr-defined]


def allowed(field: FieldInfo) -> str:
    """The values that a field may have, in words."""
    if choices := get_args(field.annotation):
        return f"one of {', '.join(choices)}"
    bounds = {name: getattr(one, name) for one in field.metadata for name in ("ge", "le") if hasattr(one, name)}
    return f"from {bounds['ge']} to {bounds['le']}" if bounds else "true or false"
