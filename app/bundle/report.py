"""The report of a bundle, report.json: the evaluation of the model on held-out images.

Fractions are 0 to 1. `training` writes the report, and `GET /metrics/report` answers with it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Fraction = Annotated[float, Field(ge=0, le=1)]


class Frozen(BaseModel):
    """Immutable; no unknown fields, no NaN or infinity (JSON cannot carry them)."""

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
    f1_ci95: tuple[Fraction, Fraction] = Field(description="Percentile bootstrap over the images.")


class Estimate(Frozen):
    """A non-negative number and its 95 % percentile bootstrap interval over the images."""

    value: float = Field(ge=0)
    ci95: tuple[float, float]


class ConfidenceBin(Frozen):
    """The images in one of 15 bins of equal width by confidence, the probability of the most probable class."""

    images: PositiveInt
    confidence: Fraction = Field(description="The mean confidence of these images.")
    accuracy: Fraction


class CalibrationScores(Frozen):
    """The calibration of the probabilities on the report's images."""

    ece: Estimate = Field(description="Expected calibration error, a fraction; 15 bins with equal numbers of images.")
    nll: Estimate = Field(description="Negative log-likelihood, in nats.")
    brier: Estimate = Field(description="Brier score, 0 to 2.")
    bins: list[ConfidenceBin] = Field([], description="The bins by increasing confidence; empty bins are left out.")


class CalibrationReport(Frozen):
    """Temperature scaling: probabilities are softmax(logits / temperature). `before` uses a temperature of 1."""

    fitted_on: PositiveInt = Field(description="The number of images in the calibration split.")
    temperature: PositiveFloat
    before: CalibrationScores
    after: CalibrationScores


class ConformalScores(Frozen):
    """The prediction sets of one nominal level, measured on the report's images."""

    coverage: Fraction = Field(
        description="The nominal level: the share of sets that should contain the true class, at least."
    )
    threshold: Fraction = Field(description="A class is in the set if its probability is at least this.")
    raw_coverage: Fraction = Field(
        description="The measured coverage of the raw sets, as the method defines them. Some of them are empty."
    )
    served_coverage: Fraction = Field(
        description="The measured coverage of the served sets. They always contain the most probable class."
    )
    expected_coverage: tuple[Fraction, Fraction] = Field(
        description="The 99 % interval of the raw coverage by chance, for these numbers of images."
    )
    mean_size: float = Field(description="The mean number of classes in a served set.")
    sizes: list[int] = Field(description="The numbers of served sets with 1, 2, ... classes.")
    empty: Fraction = Field(description="The share of raw sets that are empty.")
    class_coverage: list[Fraction] = Field(description="Served coverage by true class, in index order.")


class ConformalReport(Frozen):
    """Split conformal prediction with least ambiguous sets (Sadinle et al. 2019, arXiv:1609.00451)."""

    fitted_on: PositiveInt = Field(description="The number of images in the calibration split.")
    levels: list[ConformalScores]


class Selection(Frozen):
    """One point of the risk-coverage curve: only the most confident predictions are kept."""

    coverage: Fraction = Field(description="The share of images whose prediction is kept.")
    accuracy: Fraction = Field(description="The accuracy on these images.")


class SelectiveReport(Frozen):
    """Selective prediction: risk and coverage without the least confident predictions (Geifman & El-Yaniv 2017,
    arXiv:1705.08500)."""

    aurc: Estimate = Field(description="Area under the risk-coverage curve; 0 is best.")
    optimal_aurc: float = Field(ge=0, description="The area for a ranking that puts all errors last.")
    curve: list[Selection] = Field(description="The points by increasing coverage.")


class AbstentionScores(Frozen):
    """One out-of-distribution score, as areas under the ROC curve: 0.5 is chance, 1 is best."""

    method: str
    near: list[Fraction] = Field(
        description="The areas for classes that a network never saw in training, one for each of `near_pairs`."
    )
    near_mean: Fraction | None = Field(description="The mean of `near`.")
    far: dict[str, Fraction] = Field(
        description="The areas for unrelated images against the selection split, by kind of image."
    )


class AbstentionReport(Frozen):
    """Out-of-distribution detection, by which the service abstains."""

    method: str = Field(description="The served method.")
    threshold: float = Field(description="The service abstains if the out-of-distribution score is above this.")
    kept: Fraction = Field(description="The share of the report's images below the threshold; the target is 0.95.")
    near_pairs: list[tuple[int, int]] = Field(
        description="Pairs of classes, by index. For each pair, a network was trained without these two classes."
    )
    methods: list[AbstentionScores]


class Corruption(Frozen):
    name: str
    accuracy: list[Fraction] = Field(description="The accuracies at severity 1 to 5.")


class RobustnessReport(Frozen):
    """Accuracy on corrupted test images, in the style of CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv:1903.12261).

    This project's own code corrupts the images, so figures are not comparable with those of the published files.
    """

    n: PositiveInt = Field(description="The number of images, a random sample of the report's.")
    clean_accuracy: Fraction = Field(description="The accuracy on the same images without corruption.")
    mean_accuracy: Fraction = Field(description="The mean accuracy over corruptions and severities.")
    corruptions: list[Corruption]


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
    """The content of report.json: the evaluation of the model on held-out images. Fractions are 0 to 1."""

    schema_version: Literal[1] = 1
    split: str
    n: PositiveInt
    accuracy: Interval
    per_class: list[ClassScores]
    macro_avg: Scores
    weighted_avg: Scores
    confusion_matrix: list[list[int]] = Field(description="Counts; rows are true classes, columns predicted classes.")
    calibration: CalibrationReport | None
    conformal: ConformalReport | None = None
    selective: SelectiveReport | None = None
    abstention: AbstentionReport | None = None
    robustness: RobustnessReport | None = None
    history: list[Epoch]
