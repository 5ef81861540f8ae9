"""Bundles with other content whose hashes are right all the same, as somebody would make them who knows how."""

import base64
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save

from app.bundle.manifest import manifest_digest, render_manifest, sha256
from app.bundle.names import GRAPH, INPUT, MANIFEST, NOVELTY, OOD_SCORE
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


def parameters(features: int = 1280) -> dict[str, np.ndarray]:
    """Of the score that bundles had before 1.5.0, as app.network.novelty.Novelty names them."""
    random = np.random.default_rng(0)
    return {
        "neighbours": random.random((20, features)).astype(np.float16),
        "centre": random.random(features).astype(np.float32),
        "unusual": random.normal(size=(features, 30)).astype(np.float16),
        "mean": np.array([0.1, 0.2], np.float32),
        "deviation": np.array([0.5, 2.0], np.float32),
    }


def own_score(model: onnx.ModelProto) -> None:
    """Let the graph compute app.network.novelty with `parameters`, as bundles before 1.5.0 did, for thumbnails only."""
    for side in (1, 2):
        model.graph.input[0].type.tensor_type.shape.dim[side].dim_value = 32
    for name, value in parameters().items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    constants = {"rows": [1], "tenth": [10], "one": np.float32(1)}
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    (features,) = (node.output[0] for node in model.graph.node if node.op_type == "Flatten")
    for operator, inputs, outputs, attributes in (
        ("ReduceL2", [features, "rows"], ["length"], {"keepdims": 1}),
        ("Div", [features, "length"], ["unit"], {}),
        ("Cast", ["neighbours"], ["known"], {"to": TensorProto.FLOAT}),
        ("Gemm", ["unit", "known"], ["similar"], {"transB": 1}),
        ("TopK", ["similar", "tenth"], ["nearest", "which"], {"axis": 1}),
        ("ReduceMin", ["nearest", "rows"], ["furthest"], {"keepdims": 1}),
        ("Sub", ["one", "furthest"], ["distance"], {}),
        ("Cast", ["unusual"], ["directions"], {"to": TensorProto.FLOAT}),
        ("Sub", ["unit", "centre"], ["centred"], {}),
        ("MatMul", ["centred", "directions"], ["outside"], {}),
        ("ReduceL2", ["outside", "rows"], ["residual"], {"keepdims": 1}),
        ("Concat", ["distance", "residual"], ["both"], {"axis": 1}),
        ("Sub", ["both", "mean"], ["shifted"], {}),
        ("Div", ["shifted", "deviation"], ["standard"], {}),
        ("ReduceMean", ["standard", "rows"], [OOD_SCORE], {"keepdims": 0}),
    ):
        model.graph.node.append(helper.make_node(operator, inputs, outputs, **attributes))
    model.graph.output.append(helper.make_tensor_value_info(OOD_SCORE, TensorProto.FLOAT, ["N"]))


def former(folder: Path, new: Mapping[str, bytes] | None = None, /, **changes: Any) -> Path:
    """The shipped bundle with a score of its graph's own and nothing about photographs, as before 1.5.0."""
    scored, check = graph(own_score), json.loads((BUNDLE / MANIFEST).read_bytes())["self_check"]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(check["image"]))))
    session = onnxruntime.InferenceSession(scored, providers=["CPUExecutionProvider"])
    (score,) = session.run([OOD_SCORE], {INPUT: image[None]})
    fields = {
        "abstention": {"method": "novelty", "threshold": 3.0, "kept": 0.95},
        "self_check": check | {"ood_score": float(score[0])},
        "photographs": None,
        "photograph_self_check": None,
    }
    return forge(folder, {GRAPH: scored, NOVELTY: save(parameters())} | dict(new or {}), **fields | changes)
