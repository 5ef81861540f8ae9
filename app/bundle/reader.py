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

from pydantic import Base64Bytes, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from .report import Fraction, Frozen, Report

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
PICTURES = (
    *("accuracy_and_loss.png", "confusion_matrix.png", "reliability.png"),
    *("risk_coverage.png", "robustness.png", "mistakes.png"),
)

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Channels = tuple[float, float, float]


class BundleError(Exception):
    """The bundle is missing, damaged or of an unknown kind; the message is one line for the operator."""


class Architecture(Frozen):
    """What the weights alone do not say of the network; app.network builds it from this."""

    name: Literal["mobilenet_v2"] = "mobilenet_v2"
    stem_stride: Literal[1, 2] = 1
    stage2_stride: Literal[1, 2] = 1
    enlarge: Literal[1, 2, 3, 4] = Field(1, description="How many times its side the network enlarges an image first.")


class Input(Frozen):
    """Size in pixels, and the normalisation that the graph does inside (per channel, of 0..1)."""

    height: PositiveInt = 32
    width: PositiveInt = 32
    mean: Channels
    std: Channels


class SelfCheck(Frozen):
    """One image and what this model must give for it, tried before the service is ready."""

    image: Base64Bytes
    logits: list[float]
    ood_score: float | None = None


class ConformalLevel(Frozen):
    """A label belongs to the prediction set if its calibrated probability is at least `threshold`."""

    coverage: Fraction
    threshold: Fraction


class Conformal(Frozen):
    """Prediction sets that hold the true class with a stated probability (split conformal, arXiv:1609.00451)."""

    default_coverage: Fraction
    levels: list[ConformalLevel] = Field(min_length=1)

    @model_validator(mode="after")
    def _default_is_a_level(self) -> Self:
        if self.default_coverage not in [level.coverage for level in self.levels]:
            raise ValueError(f"default_coverage {self.default_coverage} is none of the levels")
        return self


class Calibration(Frozen):
    """How logits become probabilities: softmax(logits / temperature), Guo et al. 2017 (arXiv:1706.04599)."""

    temperature: PositiveFloat
    conformal: Conformal | None = None


class Abstention(Frozen):
    """The model gives `ood_score` beside its logits, larger for images less like the training images.

    Above `threshold`, which keeps the share `kept` of calibration images, the service abstains.
    """

    method: str
    threshold: float
    kept: Fraction


class Reference(Frozen):
    """What the answers to the calibration images looked like; traffic is compared with it."""

    predicted: list[int] = Field(description="Counts by predicted class, in index order.")
    confidence_edges: list[Fraction] = Field(description="Of the bins of the top probability, both ends included.")
    confidence: list[int] = Field(description="Counts by bin.")

    @model_validator(mode="after")
    def _bins_have_edges(self) -> Self:
        if len(self.confidence_edges) != len(self.confidence) + 1:
            raise ValueError("there must be one confidence edge more than bins")
        return self


class ModelDescription(Frozen):
    """What the manifest says of the model; GET /model answers with it."""

    schema_version: Literal[1]
    name: str = Field(pattern="^[a-z0-9_]+$")
    version: str
    classes: list[str] = Field(min_length=2, description="In index order.")
    architecture: Architecture
    input: Input
    macs: PositiveInt = Field(description="Multiply-adds for one image.")
    parameters: PositiveInt
    calibration: Calibration | None
    abstention: Abstention | None
    reference: Reference | None = None
    files: dict[str, Sha256] = Field(description="sha256 by name.")
    provenance: dict[str, Any]
    digest: Sha256


class Manifest(ModelDescription):
    """The content of bundle.json."""

    self_check: SelfCheck


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


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _read_manifest(path: Path) -> dict[str, Any]:
    raw = _read(path)
    try:
        fields = json.loads(raw, parse_constant=_refuse_constant)
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
