"""The bundle: a folder of plain files that says everything about one model, and nothing runs from it unverified.

    bundle = Bundle.load(Path("models/mobilenet_v2_cifar10"))
    bundle.manifest.classes            # the ten labels, in index order
    bundle.read("model.onnx")          # bytes whose sha256 is the manifest's

`training` writes bundles, `app` reads them, and this schema is all that they share.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
PICTURES = ("accuracy_and_loss.png", "confusion_matrix.png", "reliability.png")

Fraction = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Channels = tuple[float, float, float]


class BundleError(Exception):
    """The bundle is missing, damaged or of an unknown kind; the message is one line for the operator."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(Frozen):
    """What the weights alone do not say of the network; app.network builds it from this."""

    name: Literal["mobilenet_v2"] = "mobilenet_v2"
    stem_stride: Literal[1, 2] = 1
    stage2_stride: Literal[1, 2] = 1


class Input(Frozen):
    """Size in pixels, and the normalisation that the graph does inside (per channel, of 0..1)."""

    height: PositiveInt = 32
    width: PositiveInt = 32
    mean: Channels
    std: Channels


class SelfCheck(Frozen):
    """One image and the logits that this model must give for it, tried before the service is ready."""

    image: Base64Bytes
    logits: list[float]


class Calibration(Frozen):
    """How logits become probabilities: softmax(logits / temperature), Guo et al. 2017 (arXiv:1706.04599)."""

    temperature: PositiveFloat


class Manifest(Frozen):
    """The content of bundle.json."""

    schema_version: Literal[1]
    name: str = Field(pattern="^[a-z0-9_]+$")
    version: str
    classes: list[str] = Field(min_length=2)
    architecture: Architecture
    input: Input
    macs: PositiveInt
    parameters: PositiveInt
    calibration: Calibration | None
    abstention: dict[str, Any] | None
    self_check: SelfCheck
    files: dict[str, Sha256]
    provenance: dict[str, Any]
    digest: Sha256


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


class CalibrationScores(Frozen):
    """How far probabilities can be trusted, on the report's images."""

    ece: Estimate = Field(description="Expected calibration error, 15 bins of equally many images; a fraction.")
    nll: Estimate = Field(description="Negative log-likelihood, nats.")
    brier: Estimate = Field(description="Brier score, 0 to 2.")


class CalibrationReport(Frozen):
    """Probabilities are softmax(logits / temperature); before is without, after with the temperature."""

    fitted_on: PositiveInt = Field(description="Images of the calibration split.")
    temperature: PositiveFloat
    before: CalibrationScores
    after: CalibrationScores


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
    """The content of report.json: how the model does on images that nothing was chosen on. Fractions are 0 to 1."""

    schema_version: Literal[1] = 1
    split: str
    n: PositiveInt
    accuracy: Interval
    per_class: list[ClassScores]
    macro_avg: Scores
    weighted_avg: Scores
    confusion_matrix: list[list[int]] = Field(description="Counts; rows are the true classes, columns the predicted.")
    calibration: CalibrationReport | None
    history: list[Epoch]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def manifest_digest(fields: dict[str, Any]) -> str:
    """sha256 of the canonical JSON (sorted keys, no white space, UTF-8) of all fields but `digest`."""
    rest = {name: value for name, value in fields.items() if name != "digest"}
    return sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def render_manifest(fields: dict[str, Any]) -> bytes:
    """The exact bytes of bundle.json; a file with any other bytes is refused, white space included."""
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()


class Bundle:
    """A verified bundle, its served files in memory: what was checked is what is used."""

    def __init__(self, manifest: Manifest, files: dict[str, bytes]) -> None:
        self.manifest = manifest
        self._files = files
        self.report = Report.model_validate_json(files["report.json"])

    def read(self, name: str) -> bytes:
        """The verified content of a file. Raises KeyError for a name that the manifest does not list."""
        return self._files[name]

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def forget(self, name: str) -> None:
        """Let go of a file's bytes once whoever needed them has read them (weights are large)."""
        self._files.pop(name, None)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read and verify every file. Raises BundleError with one clear line."""
        fields = _read_manifest(directory / MANIFEST)
        try:
            manifest = Manifest.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{directory / MANIFEST}: {where}: {first['msg']}") from None
        files = {}
        for name, expected in manifest.files.items():
            if Path(name).name != name:
                raise BundleError(f"{directory / MANIFEST}: files: {name!r} is not a plain file name")
            files[name] = content = _read(directory / name)
            if sha256(content) != expected:
                raise BundleError(f"{directory / name} is damaged: its sha256 is not the one in {MANIFEST}")
        for name in ("model.onnx", "checkpoint.safetensors", "report.json", "report.txt"):
            if name not in files:
                raise BundleError(f"{directory / MANIFEST}: files: {name} is missing")
        try:
            return cls(manifest, files)
        except ValidationError as error:
            raise BundleError(f"{directory / 'report.json'}: {error.errors()[0]['msg']}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from None


def _read_manifest(path: Path) -> dict[str, Any]:
    raw = _read(path)
    try:
        fields = json.loads(raw)
    except ValueError as error:
        raise BundleError(f"{path} is damaged: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise BundleError(f"{path} is damaged: not a JSON object")
    if fields.get("schema_version") != SCHEMA_VERSION:
        found = fields.get("schema_version")
        raise BundleError(f"{path}: schema_version is {found!r}, this program reads {SCHEMA_VERSION}")
    if render_manifest(fields) != raw or manifest_digest(fields) != fields.get("digest"):
        raise BundleError(f"{path} is damaged: its content does not match its own digest")
    return fields
