"""Reads a bundle and verifies every byte of it before anything is used.

bundle = Bundle.load(Path("models/mobilenet_v2_cifar10"))
bundle.manifest.classes            # the labels, in index order
bundle.read(GRAPH)                 # bytes whose sha256 is the manifest's
"""

import json
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError

from ..validation_errors import one_line
from .graph_check import GraphError, check_graph
from .manifest import SCHEMA_VERSION, Manifest, manifest_digest, render_manifest, sha256
from .names import CHECKPOINT, GRAPH, MANIFEST, REPORT, REPORT_TEXT
from .report import Report

LONGEST_NAME = 255  # of a file, in characters


class BundleError(Exception):
    """The bundle is missing, damaged or of an unknown kind; the message is one line for the operator."""


class Bundle:
    """A verified bundle. The files' bytes are kept in memory, so what was verified is what is used."""

    def __init__(self, manifest: Manifest, report: Report, files: dict[str, bytes]) -> None:
        self.manifest = manifest
        self.report = report
        self._files = files

    def read(self, name: str) -> bytes:
        """The verified content of a file. Raises KeyError for a name that the manifest does not list."""
        return self._files[name]

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def forget(self, name: str) -> None:
        """Free a file's bytes. Weights are large and are read once."""
        self._files.pop(name, None)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read and verify every file. Raises BundleError with one line that names the file and its fault.

        Digests must match, the manifest and the report must fit their schemas and each other, and the graph must be
        complete in itself (see `check_graph`).
        """
        manifest = read_manifest(directory)
        files = {}
        for name, expected in manifest.files.items():
            files[name] = content = _read(directory / name)
            if sha256(content) != expected:
                raise BundleError(f"{directory / name} is damaged: its sha256 is not the one in {MANIFEST}")
        # No checkpoint of floats gives the answers of a graph of integers.
        weights = [GRAPH] if manifest.quantisation else [GRAPH, CHECKPOINT]
        for name in (*weights, REPORT, REPORT_TEXT):
            if name not in files:
                raise BundleError(f"{directory / MANIFEST}: files: {name} is missing")
        try:
            check_graph(files[GRAPH])
        except GraphError as error:
            raise BundleError(f"{directory / GRAPH}: {error}") from None
        report = _validate(Report, files[REPORT], directory / REPORT)
        if [scores.label for scores in report.per_class] != manifest.classes:
            raise BundleError(f"{directory / REPORT}: per_class: its labels are not the classes in {MANIFEST}")
        if [len(row) for row in report.confusion_matrix] != [len(manifest.classes)] * len(manifest.classes):
            raise BundleError(f"{directory / REPORT}: confusion_matrix: it must have a row and a column for each class")
        return cls(manifest, report, files)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a bundle whose other files need not be there. Raises BundleError, as Bundle.load."""
    path = directory / MANIFEST
    manifest = _validate(Manifest, _read_manifest(path), path)
    for name in manifest.files:
        if not 0 < len(name) <= LONGEST_NAME or Path(name).name != name or name == "..":
            raise BundleError(f"{path}: files: {name[:80]!r} is not a plain file name")
    return manifest


Model = TypeVar("Model", bound=BaseModel)


def _validate(schema: type[Model], content: dict[str, Any] | bytes, path: Path) -> Model:
    """The content of a JSON file as a model that can be written as JSON again.

    `GET /model` and `GET /metrics/report` answer with it, so nesting and characters that JSON cannot carry are refused
    here.
    """
    try:
        model = schema.model_validate(content) if isinstance(content, dict) else schema.model_validate_json(content)
        model.model_dump_json()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[:1]  # there may be thousands
        raise BundleError(f"{path}: {one_line(first)}") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: it cannot be written as JSON again ({_first_line(error)})") from None
    return model


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            path.stat()  # raises an error that says what is missing
            raise BundleError(f"cannot read {path}: it is not a file")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # a name with a NUL
        raise BundleError(f"cannot read {str(path)!r}: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _read_manifest(path: Path) -> dict[str, Any]:
    raw = _read(path)
    try:
        fields = json.loads(raw, parse_constant=_refuse_constant)
        if not isinstance(fields, dict):
            raise BundleError(f"{path} is damaged: not a JSON object")
        if fields.get("schema_version") != SCHEMA_VERSION:
            found = repr(fields.get("schema_version"))[:40]
            raise BundleError(f"{path}: schema_version is {found}, this program reads {SCHEMA_VERSION}")
        if render_manifest(fields) != raw or manifest_digest(fields) != fields.get("digest"):
            raise BundleError(f"{path} is damaged: its content does not match its own digest")
    except ValueError as error:
        raise BundleError(f"{path} is damaged: not JSON ({_first_line(error)})") from None
    except RecursionError:
        raise BundleError(f"{path} is damaged: its values are nested too deeply") from None
    return fields


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
