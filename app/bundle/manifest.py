"""The manifest of a bundle, bundle.json: its schema, its digest and its exact bytes."""

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Base64Bytes, Field, PositiveFloat, PositiveInt, model_validator

from .report import Fraction, Frozen

SCHEMA_VERSION = 1
MAX_COUNT = 2**53  # floating point counts exactly up to here
TEMPERATURES = 1e-3, 1e3  # softmax overflows below, and hardly tells the classes apart above
TOLERANCE = 1e-2  # of a logit and a score: engines and processors differ in the last digits, damage does not
MOST_TOLERANCE = 0.5  # damage moves logits by more

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Channels = tuple[float, float, float]


class DataSet(Frozen):
    """What the model was trained on. A bundle that does not say it is CIFAR-10's."""

    name: str = Field("cifar10", pattern="^[a-z0-9_]+$", description="In the names of the models of /v2.")
    title: str = Field("CIFAR-10", min_length=1, description="For people.")
    one_kind: bool = Field(
        False,
        description="Whether what was measured holds for images of every size. Otherwise it holds for thumbnails, and "
        "what `photographs` says holds for photographs.",
    )


class Architecture(Frozen):
    """What app.network needs beside the weights to build the network."""

    name: Literal["mobilenet_v2"] = "mobilenet_v2"
    stem_stride: Literal[1, 2] = 1
    stage2_stride: Literal[1, 2] = 1
    enlarge: Literal[1, 2, 3, 4] = Field(
        1, description="Factor by which the network first enlarges each side of an image."
    )


class Input(Frozen):
    """Size in pixels, and the normalisation inside the graph: per channel, for values from 0 to 1."""

    height: PositiveInt = 32
    width: PositiveInt = 32
    mean: Channels
    std: Channels


class SelfCheck(Frozen):
    """One image and the outputs that this model must give for it; checked before the service is ready."""

    image: Base64Bytes
    logits: list[float]
    ood_score: float | None = None
    tolerance: float = Field(
        TOLERANCE,
        ge=TOLERANCE,
        le=MOST_TOLERANCE,
        description="Largest allowed difference. Integers need more: a last digit decides which way a float rounds.",
    )


class ConformalLevel(Frozen):
    """A label belongs to the prediction set if its calibrated probability is at least `threshold`.

    With `by_class`, a threshold for each label in index order, the level holds for every class with enough calibration
    images, and for the others together (Vovk 2012, arXiv:1209.2673); `threshold` then is what one for all would be.
    """

    coverage: Fraction
    threshold: Fraction
    by_class: list[Fraction] | None = None

    def thresholds(self, classes: int) -> Sequence[float]:
        """One for each class."""
        return [self.threshold] * classes if self.by_class is None else self.by_class


class Conformal(Frozen):
    """Prediction sets that hold the true class with a stated probability (split conformal, arXiv:1609.00451)."""

    default_coverage: Fraction
    levels: list[ConformalLevel] = Field(min_length=1)

    @model_validator(mode="after")
    def _default_is_a_level(self) -> Self:
        if self.default_coverage not in [level.coverage for level in self.levels]:
            raise ValueError(f"default_coverage {self.default_coverage} is not one of the levels")
        return self


class Calibration(Frozen):
    """How logits become probabilities: softmax(logits / temperature), Guo et al. 2017 (arXiv:1706.04599)."""

    temperature: PositiveFloat
    conformal: Conformal | None = None

    @model_validator(mode="after")
    def _probabilities_are_numbers(self) -> Self:
        least, most = TEMPERATURES
        if not least <= self.temperature <= most:
            raise ValueError(f"temperature {self.temperature} is not from {least} to {most}")
        return self


class Abstention(Frozen):
    """The service abstains if the out-of-distribution score of an image is above `threshold`.

    The score is larger for images less like the training images. With a `temperature` it is the entropy of
    softmax(logits / temperature), otherwise the model gives it as `ood_score`. The share `kept` of the calibration
    images is not above the threshold.
    """

    method: str
    temperature: float | None = Field(None, ge=TEMPERATURES[0], le=TEMPERATURES[1])
    threshold: float
    kept: Fraction


class Reference(Frozen):
    """Histograms of the answers to the calibration images; the drift metrics compare traffic with them."""

    predicted: list[int] = Field(description="Counts by predicted class, in index order.")
    confidence_edges: list[Fraction] = Field(
        description="Edges of the bins of the top probability, both ends included."
    )
    confidence: list[int] = Field(description="Counts by bin.")

    @model_validator(mode="after")
    def _are_histograms(self) -> Self:
        edges = self.confidence_edges
        if len(edges) != len(self.confidence) + 1:
            raise ValueError("there must be one more confidence edge than bins")
        if any(low >= high for low, high in pairwise(edges)):
            raise ValueError("confidence edges must increase")
        if not all(0 <= count <= MAX_COUNT for count in (*self.predicted, *self.confidence)):
            raise ValueError(f"counts must be from 0 to {MAX_COUNT}")
        return self


class Photographs(Frozen):
    """What the bundle says of photographs: their size in the network's input, in pixels, and what was fitted on them.

    Fields outside are of thumbnails. See app.imaging.kinds for what is a photograph.
    """

    height: PositiveInt
    width: PositiveInt
    calibration: Calibration
    abstention: Abstention
    reference: Reference

    @model_validator(mode="after")
    def _the_score_is_the_entropy(self) -> Self:
        if self.abstention.temperature is None:
            raise ValueError("the abstention of photographs needs the temperature of the entropy")
        return self


class Quantisation(Frozen):
    """How a float network became a graph that computes with 8-bit integers."""

    weight_bits: int = Field(ge=2, le=8)
    activations: str = Field(min_length=1, description="Their type, such as uint8.")
    calibration: str = Field(min_length=1, description="How the ranges of the activations were found, such as minmax.")
    calibration_images: PositiveInt = Field(description="Training images whose activations have these ranges.")
    source: str = Field(min_length=1, description="Name and version of the float network.")
    source_sha256: Sha256 = Field(description="Of its weights.")
    onnxruntime: str = Field(min_length=1, description="The version that quantised it.")


class ModelDescription(Frozen):
    """What the manifest says of the model; GET /model answers with it."""

    schema_version: Literal[1]
    name: str = Field(pattern="^[a-z0-9_]+$")
    version: str
    classes: list[str] = Field(min_length=2, description="In index order.")
    data_set: DataSet = DataSet()
    architecture: Architecture
    input: Input
    macs: PositiveInt = Field(description="Multiply-adds for one image.")
    parameters: PositiveInt
    calibration: Calibration | None
    abstention: Abstention | None
    reference: Reference | None = None
    photographs: Photographs | None = None
    quantisation: Quantisation | None = Field(
        None, description="Of a graph that computes with integers. Such a bundle needs no checkpoint for PyTorch."
    )
    files: dict[str, Sha256] = Field(description="sha256 by name.")
    provenance: dict[str, Any]
    digest: Sha256


class Manifest(ModelDescription):
    """The content of bundle.json."""

    self_check: SelfCheck
    photograph_self_check: SelfCheck | None = None

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        count = len(self.classes)
        if len(set(self.classes)) != count or "" in self.classes:
            raise ValueError("classes must be different labels, none of them empty")
        for name, check in (("self_check", self.self_check), ("photograph_self_check", self.photograph_self_check)):
            if check is not None and len(check.logits) != count:
                raise ValueError(f"there are {count} classes, but {len(check.logits)} logits in {name}")
        for reference in (self.reference, self.photographs.reference if self.photographs else None):
            if reference is not None and len(reference.predicted) != count:
                raise ValueError(f"there are {count} classes, but {len(reference.predicted)} counts in reference")
        for calibration in (self.calibration, self.photographs.calibration if self.photographs else None):
            for level in calibration.conformal.levels if calibration and calibration.conformal else ():
                if level.by_class is not None and len(level.by_class) != count:
                    raise ValueError(f"there are {count} classes, but {len(level.by_class)} thresholds in by_class")
        return self

    @model_validator(mode="after")
    def _kinds_are_told_once(self) -> Self:
        if self.data_set.one_kind and self.photographs is not None:
            raise ValueError("data_set says that there is one kind of images, but photographs are another")
        return self

    @model_validator(mode="after")
    def _photographs_are_checked(self) -> Self:
        if (self.photographs is None) != (self.photograph_self_check is None):
            raise ValueError("photographs and photograph_self_check belong together")
        return self


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def manifest_digest(fields: dict[str, Any]) -> str:
    """sha256 of the canonical JSON (sorted keys, no white space, UTF-8) of all fields but `digest`."""
    rest = {name: value for name, value in fields.items() if name != "digest"}
    return sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def render_manifest(fields: dict[str, Any]) -> bytes:
    """The exact bytes of bundle.json; a file with any other bytes is refused, white space included."""
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()
