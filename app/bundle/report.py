"""The report of a bundle, report.json: how the model does on images held out from its making.

Fractions are 0 to 1. `training` writes it, `GET /metrics/report` serves it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Fraction = Annotated[float, Field(ge=0, le=1)]


class Frozen(BaseModel):
    """Neither a bundle nor a report holds a number that is none: JSON could not answer with it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(Frozen):
    """A fraction and its 95 % interval (Wilson 1927)."""

    value: Fraction
    ci95: tuple[Fraction, Fraction]


class Scores(Frozen):
    precision: Fraction
    recall: Fraction
    f1: Fraction
    support: int = Field(ge=0, description="How many images.")


class ClassScores(Scores):
    class_id: int = Field(ge=0)
    label: str
    f1_ci95: tuple[Fraction, Fraction] = Field(description="Percentile bootstrap over the images.")


class Estimate(Frozen):
    """A number from 0 up and its 95 % percentile bootstrap interval over the images."""

    value: float = Field(ge=0)
    ci95: tuple[float, float]


class ConfidenceBin(Frozen):
    """Images whose confidence, the probability of the top answer, is in one of 15 bins of equal width."""

    images: PositiveInt
    confidence: Fraction = Field(description="Mean, of those images.")
    accuracy: Fraction


class CalibrationScores(Frozen):
    """How far probabilities can be trusted, on the report's images."""

    ece: Estimate = Field(description="Expected calibration error, 15 bins of equally many images; a fraction.")
    nll: Estimate = Field(description="Negative log-likelihood, nats.")
    brier: Estimate = Field(description="Brier score, 0 to 2.")
    bins: list[ConfidenceBin] = Field(
        [], description="From little confidence to much; bins without images are left out."
    )


class CalibrationReport(Frozen):
    """Probabilities are softmax(logits / temperature); before is without, after with the temperature."""

    fitted_on: PositiveInt = Field(description="Images of the calibration split.")
    temperature: PositiveFloat
    before: CalibrationScores
    after: CalibrationScores


class ConformalScores(Frozen):
    """What the prediction sets of one level do on the report's images."""

    coverage: Fraction = Field(description="The nominal level: at least so often a set should hold the true class.")
    threshold: Fraction = Field(description="A class is in the set if its probability is at least this.")
    raw_coverage: Fraction = Field(description="Measured, of the sets as the method gives them; some are empty.")
    served_coverage: Fraction = Field(description="Measured, of the served sets: the most probable class always in.")
    expected_coverage: tuple[Fraction, Fraction] = Field(
        description="99 % interval of the raw coverage that chance allows for these numbers of images."
    )
    mean_size: float = Field(description="Of the served sets, classes.")
    sizes: list[int] = Field(description="How many served sets hold 1, 2, ... classes.")
    empty: Fraction = Field(description="Of the raw sets.")
    class_coverage: list[Fraction] = Field(description="Served coverage by true class, in index order.")


class ConformalReport(Frozen):
    """Split conformal prediction, least ambiguous sets (Sadinle et al. 2019, arXiv:1609.00451)."""

    fitted_on: PositiveInt = Field(description="Images of the calibration split.")
    levels: list[ConformalScores]


class Selection(Frozen):
    """Answering only the most confident images."""

    coverage: Fraction = Field(description="Share of images that are answered.")
    accuracy: Fraction = Field(description="On those.")


class SelectiveReport(Frozen):
    """Risk and coverage when the least confident answers are withheld (Geifman & El-Yaniv 2017, arXiv:1705.08500)."""

    aurc: Estimate = Field(description="Area under the risk-coverage curve; 0 is best.")
    optimal_aurc: float = Field(ge=0, description="Of a ranking that puts every error last.")
    curve: list[Selection] = Field(description="From few answers to all.")


class AbstentionScores(Frozen):
    """One score for being unlike the training images; areas under the ROC curve, 0.5 is chance, 1 is best."""

    method: str
    near: list[Fraction] = Field(description="By pair of classes that a network never saw in training.")
    near_mean: Fraction | None
    far: dict[str, Fraction] = Field(description="Other images against the selection split, by their kind.")


class AbstentionReport(Frozen):
    """How well the service knows what it does not know."""

    method: str = Field(description="The one that is served.")
    threshold: float
    kept: Fraction = Field(description="Share of the report's images below the threshold; 0.95 is aimed at.")
    near_pairs: list[tuple[int, int]]
    methods: list[AbstentionScores]


class Corruption(Frozen):
    name: str
    accuracy: list[Fraction] = Field(description="By severity, 1 to 5.")


class RobustnessReport(Frozen):
    """Accuracy on damaged test images, in the style of CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv:1903.12261).

    The damage is done by this project's own code: figures do not compare with those of the published files.
    """

    n: PositiveInt = Field(description="Images, drawn by lot from the report's.")
    clean_accuracy: Fraction = Field(description="On the same images, undamaged.")
    mean_accuracy: Fraction = Field(description="Over kinds and severities.")
    corruptions: list[Corruption]


class Epoch(Frozen):
    """One row of history.csv; losses in nats, validation on the selection split with averaged weights."""

    epoch: PositiveInt
    lr: float
    train_loss: float
    train_accuracy: Fraction
    validation_loss: float
    validation_accuracy: Fraction
    seconds: float


class Report(Frozen):
    """The content of report.json: how the model does on images held out from its making. Fractions are 0 to 1."""

    schema_version: Literal[1] = 1
    split: str
    n: PositiveInt
    accuracy: Interval
    per_class: list[ClassScores]
    macro_avg: Scores
    weighted_avg: Scores
    confusion_matrix: list[list[int]] = Field(description="Counts; rows are the true classes, columns the predicted.")
    calibration: CalibrationReport | None
    conformal: ConformalReport | None = None
    selective: SelectiveReport | None = None
    abstention: AbstentionReport | None = None
    robustness: RobustnessReport | None = None
    history: list[Epoch]
