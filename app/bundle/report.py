"""The report of a bundle, report.json: the model's results on images that its training did not use.

Fractions are 0 to 1. `training` writes the report, and `GET /metrics/report` answers with it.
"""

from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Fraction = Annotated[float, Field(ge=0, le=1)]
T = TypeVar("T")
# One wrong row is enough: errors take more memory than rows.
Rows: TypeAlias = Annotated[list[T], Field(fail_fast=True)]


class Frozen(BaseModel):
    """Immutable, without unknown fields, and without NaN or infinity, which JSON cannot carry."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(Frozen):
    """A fraction and its 95 % confidence interval (Wilson 1927)."""

    value: Fraction
    ci95: tuple[Fraction, Fraction]


class Scores(Frozen):
    precision: Fraction
    recall: Fraction
    f1: Fraction
    support: int = Field(ge=0, description="The number of images.")


class ClassScores(Scores):
    class_id: int = Field(ge=0)
    label: str
    f1_ci95: tuple[Fraction, Fraction] = Field(
        description="95 % interval by Wilson's method; in older reports a percentile bootstrap over the images."
    )


class Estimate(Frozen):
    """A number of at least 0, and its 95 % percentile bootstrap interval over the images."""

    value: float = Field(ge=0)
    ci95: tuple[float, float]


class ConfidenceBin(Frozen):
    """The images whose confidence (the probability of the top class) lies in one of 15 bins of equal width."""

    images: PositiveInt
    confidence: Fraction = Field(description="Mean over those images.")
    accuracy: Fraction


class CalibrationScores(Frozen):
    """How well the probabilities agree with the results, on the report's images."""

    ece: Estimate = Field(description="Expected calibration error, a fraction; 15 bins with equal numbers of images.")
    ece_by_chance: tuple[float, float] | None = Field(
        None, description="95 % range of the error that exact probabilities would show on so many images."
    )
    nll: Estimate = Field(description="Negative log-likelihood, in nats.")
    brier: Estimate = Field(description="Brier score, 0 to 2.")
    bins: Rows[ConfidenceBin] = Field([], description="By increasing confidence; bins without images are left out.")


class CalibrationReport(Frozen):
    """Probabilities are softmax(logits / temperature): `before` with temperature 1, `after` with the fitted one."""

    fitted_on: PositiveInt = Field(description="The number of images in the calibration split.")
    temperature: PositiveFloat
    before: CalibrationScores
    after: CalibrationScores


class ConformalScores(Frozen):
    """Results of the prediction sets of one level on the report's images."""

    coverage: Fraction = Field(
        description="The nominal level: the least share of sets that should hold the true class."
    )
    threshold: Fraction = Field(
        description="A class is in the set if its probability is at least this, but for classes with thresholds of "
        "their own."
    )
    by_class: list[Fraction] | None = Field(
        None,
        description="The threshold of each class, in index order, so that the level holds for every class; classes "
        "with few calibration images share one. Null if all share `threshold`.",
    )
    raw_coverage: Fraction = Field(
        description="Measured share of sets, as the method gives them, that hold the true class; some sets are empty."
    )
    served_coverage: Fraction = Field(
        description="The same share for the served sets, which always hold the most probable class."
    )
    expected_coverage: tuple[Fraction, Fraction] = Field(
        description="99 % interval of the raw coverage that chance allows for these numbers of images."
    )
    mean_size: float = Field(description="Classes in a served set, on average.")
    sizes: list[int] = Field(description="Numbers of served sets with 1, 2, ... classes.")
    empty: Fraction = Field(description="Share of empty sets among the raw sets.")
    class_coverage: list[Fraction] = Field(description="Served coverage by true class, in index order.")


class ConformalReport(Frozen):
    """Split conformal prediction with least ambiguous sets (Sadinle et al. 2019, arXiv:1609.00451)."""

    fitted_on: PositiveInt = Field(description="The number of images in the calibration split.")
    levels: Rows[ConformalScores]


class Selection(Frozen):
    """Accuracy when only the most confident images are answered."""

    coverage: Fraction = Field(description="Share of images that are answered.")
    accuracy: Fraction = Field(description="On the answered images.")


class SelectiveReport(Frozen):
    """Selective prediction: risk and coverage without the least confident predictions (Geifman & El-Yaniv 2017,
    arXiv:1705.08500)."""

    aurc: Estimate = Field(description="Area under the risk-coverage curve; 0 is best.")
    optimal_aurc: float = Field(ge=0, description="That of a ranking that puts every error last.")
    curve: Rows[Selection] = Field(description="By increasing coverage.")


class AbstentionScores(Frozen):
    """One out-of-distribution score; areas under the ROC curve, where 0.5 is chance and 1 is best."""

    method: str
    near: list[Fraction] = Field(description="For each pair of classes that a network was trained without.")
    near_mean: Fraction | None
    far: dict[str, Fraction] = Field(description="Other kinds of images against the selection split.")


class AbstentionReport(Frozen):
    """How well the out-of-distribution score separates unfamiliar images from test images."""

    method: str = Field(description="The score that the service uses.")
    threshold: float
    kept: Fraction = Field(description="Share of the report's images below the threshold; the aim is 0.95.")
    near_pairs: list[tuple[int, int]]
    methods: Rows[AbstentionScores]
    others: int | None = Field(None, description="Images of other things, where there are some.")
    refused: Interval | None = Field(None, description="Share of those that the service abstains from.")


class Corruption(Frozen):
    name: str
    accuracy: list[Fraction] = Field(description="The accuracies at severity 1 to 5.")


class RobustnessReport(Frozen):
    """Accuracy on corrupted test images, in the style of CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv:1903.12261).

    This project's own code makes the corruptions, so figures do not compare with those of the published files.
    """

    n: PositiveInt = Field(description="Images, a random sample of the report's.")
    clean_accuracy: Fraction = Field(description="On the same images without corruption.")
    mean_accuracy: Fraction = Field(description="Mean over corruptions and severities.")
    corruptions: Rows[Corruption]


class PhotographClass(Frozen):
    """The photographs of one class."""

    class_id: int = Field(ge=0)
    label: str
    support: PositiveInt = Field(description="The number of photographs.")
    recall: Interval = Field(description="Share that the model classifies as this class.")


class PhotographAbstention(Frozen):
    """How well the out-of-distribution score tells photographs of the classes from photographs of other things."""

    method: str
    threshold: float
    kept: Interval = Field(description="Share of the photographs of the classes that the service answers.")
    refused: Interval = Field(description="Share of the photographs of other things that it abstains from.")
    auroc: Fraction = Field(description="Area under the ROC curve: 0.5 is chance, 1 is best.")


class PhotographReport(Frozen):
    """Results on photographs of kinds that training never saw, half of which calibrated the model."""

    side: PositiveInt = Field(description="Pixels of each side in the network's input.")
    n: PositiveInt = Field(description="Photographs of the classes, in the report's half.")
    others: PositiveInt = Field(description="Photographs of other things, in the report's half.")
    accuracy: Interval
    macro_recall: Fraction = Field(description="Mean of the classes' recalls.")
    per_class: Rows[PhotographClass] = Field(description="Classes without photographs are missing.")
    calibration: CalibrationReport
    conformal: ConformalReport
    abstention: PhotographAbstention


class LabelAccuracy(Frozen):
    """Accuracy on the report's images by labels of other people, or without near-duplicates of training images."""

    name: str = Field(description="What the labels are, or which images are left out.")
    source: str = Field(description="The published file, its authors and its licence.")
    n: PositiveInt = Field(description="The number of images.")
    accuracy: Interval
    given: Fraction = Field(description="Accuracy of CIFAR-10's own labels by these.")


class Epoch(Frozen):
    """One row of history.csv. Losses are in nats. Validation is on the selection split, with averaged weights."""

    epoch: PositiveInt
    lr: float
    train_loss: float
    train_accuracy: Fraction
    validation_loss: float
    validation_accuracy: Fraction
    seconds: float


class Report(Frozen):
    """The content of report.json: the results on images that training did not use. Fractions are 0 to 1."""

    schema_version: Literal[1] = 1
    split: str
    n: PositiveInt
    accuracy: Interval
    per_class: Rows[ClassScores]
    macro_avg: Scores
    weighted_avg: Scores
    confusion_matrix: Rows[Rows[int]] = Field(description="Counts; rows are true classes, columns predicted classes.")
    calibration: CalibrationReport | None
    conformal: ConformalReport | None = None
    selective: SelectiveReport | None = None
    abstention: AbstentionReport | None = None
    robustness: RobustnessReport | None = None
    photographs: PhotographReport | None = None
    labels: Rows[LabelAccuracy] | None = None
    history: Rows[Epoch]
