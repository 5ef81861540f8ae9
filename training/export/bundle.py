"""A finished, evaluated run becomes a bundle: every file is made and verified before the folder gets its name."""

import base64
import io
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors
from torch import Tensor

from app.bundle.manifest import SCHEMA_VERSION, Architecture, Manifest, manifest_digest, render_manifest, sha256
from app.bundle.names import (
    CARD,
    CHECKPOINT,
    CLASS_MAPS,
    GRAPH,
    HISTORY,
    LOGITS,
    MANIFEST,
    NOVELTY,
    OOD_SCORE,
    REPORT,
    REPORT_TEXT,
    SPLIT,
)
from app.bundle.reader import Bundle, BundleError
from app.bundle.report import Report
from app.network.mobilenet import Preprocessed, count_macs, count_parameters
from app.network.served import ServedNetwork
from training.atomic_files import write_folder_atomically
from training.config import IMAGENET_MEAN, IMAGENET_STD
from training.data.cifar10 import CLASSES, Split, load
from training.errors import TrainingError
from training.evaluate.abstention import KEPT, SERVED
from training.evaluate.conformal import fit_conformal
from training.evaluate.drift_reference import reference
from training.evaluate.evaluate import Evaluation, render_report, report_of, saved_evaluation
from training.evaluate.metrics import report_text
from training.evaluate.network_outputs import Scored, predict_features
from training.export import plots
from training.export.card import render_card
from training.export.graph import build_graph, run_graph
from training.fit.run import history_csv
from training.fit.run_folder import Outcome

NAME, VERSION = "mobilenet_v2_cifar10", "1.3.0"
SHIPPED = {  # what the names of the networks in models/ end in
    Architecture(stem_stride=2, stage2_stride=2, enlarge=4): "",
    Architecture(stem_stride=1, stage2_stride=2): "_small",
}
PARITY_IMAGES = 1000
PARITY = {LOGITS: 1e-4, CLASS_MAPS: 1e-4, OOD_SCORE: 1e-2}  # outputs of the graph and of PyTorch differ by no more
# Or, logits and maps, by this share of the largest logit: rounding grows with the logits. With logits that reached -176
# PyTorch's own float32 was 0.99e-4 from float64, and the graph's was refused for 1.4e-4.
RELATIVE_PARITY = 1e-6
MISTAKES = 18  # shown in the card


def export(outcome: Outcome, data_dir: Path, bundle: Path, *, force: bool, download: bool) -> Manifest:
    """Write the bundle of a run that has been evaluated; a bundle that is there is replaced only with `force`.

    Raises TrainingError, and leaves everything as it was, when the run was not evaluated, when the graph
    differs from PyTorch, or when the bundle exists or cannot be written.
    """
    check_target(bundle, force=force)
    evaluation = saved_evaluation(outcome)
    if evaluation is None or evaluation.robustness is None:
        raise TrainingError(
            f"the run in {outcome.folder} was not evaluated: "
            f"`python -m training evaluate --run-dir {outcome.folder}` does it"
        )
    images, parts = outcome.data(data_dir, download=download)
    select = images.images[parts.select]
    model = outcome.model()
    served = ServedNetwork(model, evaluation.novelty)
    graph = build_graph(served).SerializeToString()
    check_parity(served, graph, select[:PARITY_IMAGES])
    report = report_of(evaluation, outcome)
    files = _files(outcome, evaluation, report, parts, graph)
    files["mistakes.png"] = _mistakes(evaluation.test, report, data_dir)
    fields = _fields(outcome, model, parts, evaluation, report, _self_check(graph, select[0].numpy()))
    # The card needs the manifest, and the manifest the card's digest: a manifest without digests is enough for it.
    draft = Manifest.model_validate(fields | {"files": {}, "digest": sha256(b"")})
    files[CARD] = render_card(draft, report).encode()
    fields["files"] = {name: sha256(content) for name, content in sorted(files.items())}
    fields["digest"] = manifest_digest(fields)
    files[MANIFEST] = render_manifest(fields)
    try:
        write_folder_atomically(bundle.resolve(), files, _verify)
    except OSError as error:
        raise _unwritable(bundle, error) from None
    return Manifest.model_validate(fields)


def bundle_name(architecture: Architecture) -> str:
    """Of the model: networks of different costs have different names."""
    enlarged = f"_enlarged_{architecture.enlarge}" if architecture.enlarge > 1 else ""
    strides = f"_strides_{architecture.stem_stride}_{architecture.stage2_stride}"
    return NAME + SHIPPED.get(architecture, enlarged + strides)


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


def check_parity(served: ServedNetwork, graph: bytes, images: Tensor) -> dict[str, float]:
    """The largest difference between ONNX Runtime's and PyTorch's outputs, by output.

    Raises TrainingError when one is larger than is allowed.
    """
    assert served.novelty is not None
    seen = predict_features(served.model, images)
    scores = served.novelty.score(torch.from_numpy(seen.features)).numpy()
    pixels = images.numpy()
    pairs = {
        LOGITS: (run_graph(graph, pixels), seen.logits),
        CLASS_MAPS: (run_graph(graph, pixels, CLASS_MAPS).mean((2, 3)), seen.logits),
        OOD_SCORE: (run_graph(graph, pixels, OOD_SCORE), scores),
    }
    differences = {name: float(np.abs(by_graph - by_torch).max()) for name, (by_graph, by_torch) in pairs.items()}
    relative = RELATIVE_PARITY * float(np.abs(seen.logits).max())
    allowed = PARITY | {name: max(PARITY[name], relative) for name in (LOGITS, CLASS_MAPS)}
    for name, difference in differences.items():
        if not difference < allowed[name]:  # not <=: both may be infinite
            raise TrainingError(
                f"{name} of the ONNX graph differ from PyTorch's by {difference:.2g} on {len(images)} images, "
                f"{allowed[name]:.2g} is allowed: nothing was written"
            )
    return differences


def _self_check(graph: bytes, image: npt.NDArray[np.uint8]) -> dict[str, Any]:
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    (logits,), (score,) = run_graph(graph, image[None]), run_graph(graph, image[None], OOD_SCORE)
    return {
        "image": base64.b64encode(png.getvalue()).decode(),
        "logits": [float(value) for value in logits],
        "ood_score": float(score),
    }


def _files(outcome: Outcome, evaluation: Evaluation, report: Report, parts: Split, graph: bytes) -> dict[str, bytes]:
    assert report.calibration and report.selective and report.robustness
    indices = {name: index.tolist() for name, index in vars(parts).items()}
    return {
        GRAPH: graph,
        CHECKPOINT: outcome.weights,
        NOVELTY: save_safetensors(evaluation.novelty._asdict()),
        REPORT: render_report(report),
        REPORT_TEXT: report_text(evaluation.test).encode(),
        HISTORY: history_csv([row.model_dump() for row in outcome.history]).encode(),
        SPLIT: (json.dumps(indices, separators=(",", ":")) + "\n").encode(),
        "accuracy_and_loss.png": plots.accuracy_and_loss(outcome.history),
        "confusion_matrix.png": plots.confusion(np.array(report.confusion_matrix)),
        "reliability.png": plots.reliability(evaluation.test, report.calibration),
        "risk_coverage.png": plots.risk_coverage(report.selective),
        "robustness.png": plots.robustness(report.robustness),
    }


def _mistakes(test: Scored, report: Report, data_dir: Path) -> bytes:
    """The picture of the test images that the network was most sure of, and wrong about."""
    assert report.calibration
    confidence = test.probabilities(report.calibration.temperature).max(1)
    wrong = np.flatnonzero(~test.correct())
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    images = load(data_dir, train=False, download=False).images.numpy()
    return plots.mistakes(images[worst], test.labels.numpy()[worst], test.predicted()[worst], confidence[worst])


def _fields(
    outcome: Outcome,
    model: Preprocessed,
    parts: Split,
    evaluation: Evaluation,
    report: Report,
    self_check: dict[str, Any],
) -> dict[str, Any]:
    """bundle.json but for `files` and `digest`."""
    config = outcome.config
    assert report.calibration and report.abstention
    temperature = report.calibration.temperature
    conformal = fit_conformal(evaluation.calibrate, temperature)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": bundle_name(config.architecture),
        "version": f"{VERSION}+{outcome.weights_sha256[:8]}",
        "classes": list(CLASSES),
        "architecture": config.architecture.model_dump(),
        "input": {"height": 32, "width": 32, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
        "macs": count_macs(model.network),
        "parameters": count_parameters(model.network),
        "calibration": {"temperature": temperature, "conformal": conformal.model_dump()},
        "abstention": {"method": SERVED, "threshold": report.abstention.threshold, "kept": KEPT},
        "reference": reference(evaluation.calibrate, temperature).model_dump(),
        "self_check": self_check,
        "provenance": {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **outcome.environment,
            "continued": list(outcome.continued),
            "config": config.as_dict(),
            "data": {"train": outcome.train_data, "select": outcome.selection_data},
            "initial_weights": outcome.initial_weights,
            "teacher": outcome.teacher,
            "seeds": {"run": config.seed, "split": config.split_seed},
            "split": {"file": SPLIT} | {name: len(index) for name, index in vars(parts).items()},
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
