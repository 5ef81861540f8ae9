"""A finished, evaluated run becomes a bundle: every file is made and verified before the folder gets its name."""

import base64
import io
import json
import math
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image
from torch import Tensor

from app.bundle import MANIFEST, SCHEMA_VERSION, Bundle, BundleError, Manifest, manifest_digest, render_manifest, sha256
from app.network import Preprocessed, count_macs, count_parameters
from app.report import CalibrationReport, Report
from training import plots
from training.calibrate import calibration_report
from training.card import render_card
from training.config import IMAGENET_MEAN, IMAGENET_STD
from training.data import CLASSES, Split
from training.evaluate import render_report, saved_logits
from training.fit import history_csv
from training.graph import INPUT, OUTPUT, build_graph
from training.logits import Scored, predict_logits
from training.metrics import build_report, report_text
from training.outcome import Outcome
from training.problems import TrainingError
from training.storage import write_folder_atomically

NAME, VERSION = "mobilenet_v2_cifar10", "1.0.0"
PARITY_IMAGES, PARITY = 1000, 1e-4  # logits of the graph and of PyTorch differ by no more


def export(outcome: Outcome, data_dir: Path, bundle: Path, *, force: bool, download: bool) -> Manifest:
    """Write the bundle of a run that has been evaluated; a bundle that is there is replaced only with `force`.

    Raises TrainingError, and leaves everything as it was, when the run was not evaluated, when the graph
    differs from PyTorch, or when the bundle exists or cannot be written.
    """
    check_target(bundle, force=force)
    scored = saved_logits(outcome)
    if scored is None:
        raise TrainingError(
            f"the run in {outcome.folder} was not evaluated: "
            f"`python -m training evaluate --run-dir {outcome.folder}` does it"
        )
    images, parts = outcome.data(data_dir, download=download)
    select = images.images[parts.select]
    model = outcome.model()
    graph = build_graph(model).SerializeToString()
    check_parity(model, graph, select[:PARITY_IMAGES])
    calibration = calibration_report(scored["calibrate"], scored["test"])
    report = build_report(scored["test"], outcome.history, calibration)
    files = _files(outcome, scored["test"], report, calibration, parts, graph)
    fields = _fields(outcome, model, parts, calibration, _self_check(graph, select[0].numpy()))
    # The card needs the manifest, and the manifest the card's digest: a manifest without digests is enough for it.
    draft = Manifest.model_validate(fields | {"files": {}, "digest": sha256(b"")})
    files["README.md"] = render_card(draft, report).encode()
    fields["files"] = {name: sha256(content) for name, content in sorted(files.items())}
    fields["digest"] = manifest_digest(fields)
    files[MANIFEST] = render_manifest(fields)
    try:
        write_folder_atomically(bundle.resolve(), files, _verify)
    except OSError as error:
        raise _unwritable(bundle, error) from None
    return Manifest.model_validate(fields)


def check_target(bundle: Path, *, force: bool) -> None:
    """Raises TrainingError unless a bundle may be written to `bundle`, so that it is known before hours of training."""
    if bundle.is_file():
        raise TrainingError(f"--bundle {bundle} is a file: name a folder")
    try:
        if bundle.is_dir() and any(bundle.iterdir()):
            if not (bundle / MANIFEST).exists():
                raise TrainingError(f"--bundle {bundle} holds no bundle but other files: name another folder")
            if not force:
                raise TrainingError(f"--bundle {bundle} exists: --force replaces it, or name another folder")
        parent = bundle.resolve().parent
        parent.mkdir(parents=True, exist_ok=True)
        # Only writing tells whether one may write, on every file system and for every user.
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise _unwritable(bundle, error) from None


def check_parity(model: Preprocessed, graph: bytes, images: Tensor) -> float:
    """The largest difference between PyTorch's and ONNX Runtime's logits. Raises TrainingError above 1e-4."""
    difference = float(np.abs(run_graph(graph, images.numpy()) - predict_logits(model, images).numpy()).max())
    if not difference <= PARITY:  # NaN is no parity either
        raise TrainingError(
            f"the ONNX graph differs from PyTorch by {difference:.2g} on {len(images)} images, {PARITY:g} is allowed: "
            f"nothing was written"
        )
    return difference


def run_graph(graph: bytes, images: npt.NDArray[np.uint8], batch_size: int = 50) -> npt.NDArray[np.float32]:
    """Logits of images [N, H, W, 3] by ONNX Runtime."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    batches = np.array_split(images, math.ceil(len(images) / batch_size))
    return np.concatenate([session.run([OUTPUT], {INPUT: batch})[0] for batch in batches])


def _self_check(graph: bytes, image: npt.NDArray[np.uint8]) -> dict[str, Any]:
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    logits = run_graph(graph, image[None])[0]
    return {"image": base64.b64encode(png.getvalue()).decode(), "logits": [float(value) for value in logits]}


def _files(
    outcome: Outcome, test: Scored, report: Report, calibration: CalibrationReport, parts: Split, graph: bytes
) -> dict[str, bytes]:
    indices = {name: index.tolist() for name, index in vars(parts).items()}
    return {
        "model.onnx": graph,
        "checkpoint.safetensors": outcome.weights,
        "report.json": render_report(report),
        "report.txt": report_text(test).encode(),
        "history.csv": history_csv([row.model_dump() for row in outcome.history]).encode(),
        "split.json": (json.dumps(indices, separators=(",", ":")) + "\n").encode(),
        "accuracy_and_loss.png": plots.accuracy_and_loss(outcome.history),
        "confusion_matrix.png": plots.confusion(np.array(report.confusion_matrix)),
        "reliability.png": plots.reliability(test, calibration),
    }


def _fields(
    outcome: Outcome, model: Preprocessed, parts: Split, calibration: CalibrationReport, self_check: dict[str, Any]
) -> dict[str, Any]:
    """bundle.json but for `files` and `digest`."""
    config = outcome.config
    return {
        "schema_version": SCHEMA_VERSION,
        "name": NAME,
        "version": f"{VERSION}+{outcome.weights_sha256[:8]}",
        "classes": list(CLASSES),
        "architecture": config.architecture.model_dump(),
        "input": {"height": 32, "width": 32, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
        "macs": count_macs(model.network),
        "parameters": count_parameters(model.network),
        "calibration": {"temperature": calibration.temperature},
        "abstention": None,
        "self_check": self_check,
        "provenance": {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **outcome.environment,
            "config": config.as_dict(),
            "data": {"train": outcome.train_data, "select": outcome.selection_data},
            "initial_weights": outcome.initial_weights,
            "seeds": {"run": config.seed, "split": config.split_seed},
            "split": {"file": "split.json"} | {name: len(index) for name, index in vars(parts).items()},
            "cpu_hours": round(outcome.cpu_seconds / 3600, 3),
        },
    }


def _verify(folder: Path) -> None:
    try:
        Bundle.load(folder)
    except BundleError as error:
        raise TrainingError(f"the bundle was not written: {error}") from None


def _unwritable(bundle: Path, error: OSError) -> TrainingError:
    return TrainingError(f"cannot write --bundle {bundle} ({error.strerror}): name a folder that can be written")
