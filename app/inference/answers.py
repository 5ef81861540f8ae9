"""What the service says of one image, and the rules that turn the network's outputs into it.

    rules = rules_of(bundle.manifest)
    classification = rules["thumbnails"].classify(outputs, queue_seconds=0.0, inference_seconds=0.01)
    classification.answer(top_k=3, coverage=0.99)

An answer says in two ways how far to trust it, each if the bundle provides for it. A prediction set holds the true
class with a stated probability, for images like the training images. `abstain` says that the image is unlike them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, Field

from ..bundle.manifest import Abstention, Calibration, Manifest
from ..imaging.kinds import Kind
from .decisions import entropy, prediction_set, probabilities, top_k

if TYPE_CHECKING:
    from .sessions import Images, Outputs

DIGITS = 6  # of numbers in answers; scores are compared after rounding, so that callers reach the same decision


class Prediction(BaseModel):
    label: str = Field(examples=["cat"])
    class_id: int = Field(ge=0, examples=[3])
    probability: float = Field(ge=0, le=1, examples=[0.9312])


class PredictionSet(BaseModel):
    """Classes that include the true one with the probability `coverage`, for images like those of `measured_on`."""

    coverage: float = Field(ge=0, le=1, examples=[0.99])
    labels: list[str] = Field(min_length=1, description="Most probable first.", examples=[["cat", "dog"]])


class ImageResult(BaseModel):
    """The top_k most probable classes, most probable first, and how far to trust them.

    A field is null if the bundle does not provide it.
    """

    predictions: list[Prediction]
    prediction_set: PredictionSet | None = None
    abstain: bool | None = Field(
        None,
        description="The image is unlike the training images (`ood_score` is above `ood_threshold`): "
        "use none of the answer.",
        examples=[False],
    )
    ood_score: float | None = Field(
        None,
        description="Out-of-distribution score: larger for images less like the training images.",
        examples=[0.71],
    )
    ood_threshold: float | None = Field(
        None, description="The model abstains if `ood_score` is above this.", examples=[2.96]
    )
    views: int = Field(description="Over how many views of the image the logits were averaged.", examples=[1])
    measured_on: Kind | None = Field(
        None,
        description="The kind of pictures on which probabilities, sets and thresholds were measured: the kind of this "
        "image, or the kind that the request named. Null if the model was not measured on this kind.",
        examples=["photographs"],
    )


class Fault(BaseModel):
    """Why there is no answer for an image."""

    code: str = Field(examples=["undecodable_image"])
    detail: str = Field(examples=["the PNG is cut short or corrupt"])


@dataclass(frozen=True)
class Rules:
    """A model's labels in index order, and for one kind of pictures its temperature and its thresholds.

    measured_on: that kind; None if the model was not measured on it.
    levels: for each coverage that the bundle provides, a threshold of the probability for each class; empty without
    prediction sets.
    """

    measured_on: Kind | None
    labels: Sequence[str]
    temperature: float
    levels: Mapping[float, Sequence[float]]
    default_coverage: float | None
    ood_threshold: float | None
    ood_temperature: float | None  # of the entropy; None if the model gives the score

    def classify(
        self,
        outputs: "Outputs",
        *,
        queue_seconds: float,
        inference_seconds: float,
        decode_seconds: float = 0.0,
        began: float | None = None,
        ended: float = 0.0,
        thumbnail: "Images | None" = None,
    ) -> "Classification":
        """What the outputs for one image's views say of it: logits and scores are averaged over the views."""
        scores = outputs.ood_scores
        score = None if scores is None else sum(scores.tolist()) / len(scores)
        if self.ood_temperature is not None:
            score = entropy(outputs.logits, self.ood_temperature)
        if self.ood_threshold is None:
            score = None  # without a threshold for this kind, the score has no meaning
        return Classification(
            rules=self,
            probabilities=probabilities(outputs.logits, self.temperature),
            views=len(outputs.logits),
            decode_seconds=decode_seconds,
            queue_seconds=queue_seconds,
            inference_seconds=inference_seconds,
            began=began,
            ended=ended,
            thumbnail=thumbnail,
            ood_score=None if score is None else round(score, DIGITS),
        )


def rules_of(manifest: Manifest) -> Mapping[Kind, Rules]:
    """The rules for each kind of pictures. Those for a kind that the bundle was not measured on promise nothing."""
    labels, calibration, photographs = manifest.classes, manifest.calibration, manifest.photographs
    if manifest.data_set.one_kind:
        return {
            kind: _rules(labels, calibration, manifest.abstention, kind if calibration else None)
            for kind in get_args(Kind)
        }
    return {
        "thumbnails": _rules(labels, calibration, manifest.abstention, "thumbnails" if calibration else None),
        "photographs": _rules(labels, photographs.calibration, photographs.abstention, "photographs")
        if photographs
        else _rules(labels, calibration and calibration.model_copy(update={"conformal": None}), None, None),
    }


def _rules(
    labels: Sequence[str], calibration: Calibration | None, abstention: Abstention | None, measured_on: Kind | None
) -> Rules:
    conformal = calibration.conformal if calibration else None
    return Rules(
        measured_on=measured_on,
        labels=labels,
        temperature=calibration.temperature if calibration else 1.0,
        levels={level.coverage: level.thresholds(len(labels)) for level in conformal.levels} if conformal else {},
        default_coverage=conformal.default_coverage if conformal else None,
        ood_threshold=round(abstention.threshold, DIGITS) if abstention else None,
        ood_temperature=abstention.temperature if abstention else None,
    )


@dataclass(frozen=True)
class Classification:
    """probabilities: [classes], calibrated, summing to 1. Durations in seconds.

    began: when its decoding began, None for pixels; ended: when its inference ended; in seconds of time.monotonic().
    thumbnail: uint8 RGB [height, width, 3], the first view; None for pixels.
    ood_score is larger for images less like the training images, and None for a bundle without abstention.
    """

    rules: Rules
    probabilities: list[float]
    views: int
    decode_seconds: float
    queue_seconds: float
    inference_seconds: float
    began: float | None
    ended: float
    thumbnail: "Images | None" = field(default=None, repr=False, compare=False)
    ood_score: float | None = None

    @cached_property
    def order(self) -> Sequence[int]:
        """Class ids, most probable first."""
        return top_k(self.probabilities, len(self.probabilities))

    @property
    def class_id(self) -> int:
        """The most probable class."""
        return self.order[0]

    @property
    def label(self) -> str:
        """Its label."""
        return self.rules.labels[self.class_id]

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.probabilities[self.class_id]

    @property
    def abstain(self) -> bool | None:
        """Whether the score is above the bundle's threshold; None for a bundle without abstention."""
        threshold = self.rules.ood_threshold
        return None if self.ood_score is None or threshold is None else self.ood_score > threshold

    def answer(self, top_k: int, coverage: float | None = None) -> ImageResult:
        """The answer as it is sent. `coverage` of the prediction set is one of `rules.levels`, or the default.

        Without such a level there is no prediction set.
        """
        return ImageResult(
            predictions=[
                Prediction(
                    label=self.rules.labels[index],
                    class_id=index,
                    probability=round(self.probabilities[index], DIGITS),
                )
                for index in self.order[:top_k]
            ],
            prediction_set=self._prediction_set(self.rules.default_coverage if coverage is None else coverage),
            abstain=self.abstain,
            ood_score=self.ood_score,
            ood_threshold=self.rules.ood_threshold,
            views=self.views,
            measured_on=self.rules.measured_on,
        )

    def _prediction_set(self, coverage: float | None) -> PredictionSet | None:
        if coverage is None or coverage not in self.rules.levels:
            return None
        indices = prediction_set(self.probabilities, self.rules.levels[coverage])
        return PredictionSet(coverage=coverage, labels=[self.rules.labels[index] for index in indices])
