"""Bundles with other content whose hashes are right all the same, as somebody would make them who knows how."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx

from app.bundle.manifest import manifest_digest, render_manifest, sha256
from app.bundle.names import GRAPH, MANIFEST
from tests.conftest import BUNDLE


def forge(folder: Path, new: Mapping[str, bytes] | None = None, /, **changes: Any) -> Path:
    """The shipped bundle in `folder`, with `new` files, changed fields of the manifest, and digests that match."""
    folder.mkdir(exist_ok=True)
    for path in BUNDLE.iterdir():
        if not (folder / path.name).exists():
            os.link(path, folder / path.name)
    fields = json.loads((BUNDLE / MANIFEST).read_bytes()) | changes
    for name, content in (new or {}).items():
        write(folder / name, content)
        fields["files"] = fields["files"] | {name: sha256(content)}
    fields["digest"] = manifest_digest(fields)
    write(folder / MANIFEST, render_manifest(fields))
    return folder


def write(path: Path, content: bytes) -> None:
    """Replace a file without a change to the shipped one that it may be a link to."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def graph(change: Callable[[onnx.ModelProto], Any]) -> bytes:
    """The shipped graph after a change."""
    model = onnx.load_from_string((BUNDLE / GRAPH).read_bytes())
    change(model)
    return model.SerializeToString()
