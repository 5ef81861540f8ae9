"""Write the bundle of an evaluated run: every file is made and verified before the folder gets its name."""

import base64
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
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
    REPORT,
    REPORT_TEXT,
    SPLIT,
)
from app.bundle.reader import Bundle, BundleError
from app.bundle.report import Report
from app.network.mobilenet import Preprocessed, count_macs, count_parameters
from app.network.served import ServedNetwork
from training.atomic_files import try_to_write, write_folder_atomically
from training.config import IMAGENET_MEAN, IMAGENET_STD
from training.data.cifar10 import DESCRIPTION, Split
from training.data.data_set import DataSet
from training.data.description import Description
from training.data.unrelated import textures
from training.errors import TrainingError
from training.evaluate.abstention import KEPT, SERVED
from training.evaluate.conformal import fit_conformal
from training.evaluate.drift_reference import drift_reference
from training.evaluate.evaluate import Evaluation, conformal_levels, evaluated, measured_on
from training.evaluate.metrics import report_text
from training.evaluate.network_outputs import Predictions, predict_logits
from training.evaluate.photographs import fit_photographs, photograph_side
from training.export import plots
from training.export.card import render_card
from training.export.card_own import render_own_card
from training.export.graph import build_graph, run_graph
from training.export.quantisation import check_quantised, rounding_tolerance
from training.fit.run_folder import FinishedRun, history_csv

NAME, VERSION = "mobilenet_v2_cifar10", "1.7.0"
OWN_VERSION = "1.0.0"
SHIPPED = {  # suffixes of the names of the networks in models/
    Architecture(stem_stride=2, stage2_stride=2, enlarge=4): "",
    Architecture(stem_stride=2, stage2_stride=2, enlarge=2): "_small",
    Architecture(stem_stride=1, stage2_stride=2): "_small",  # before 1.4.0, at the same cost
}
PARITY_IMAGES = 1000
PARITY = 1e-4  # largest allowed difference between the graph and PyTorch
# Also this share of the largest logit: rounding grows with the logits. With logits down to -176,
# PyTorch's own float32 differed from float64 by 0.99e-4, and the graph was refused for 1.4e-4.
RELATIVE_PARITY = 1e-6
MISTAKES = 18  # shown in the card


def export(run: FinishedRun, dataset: DataSet, bundle: Path, *, force: bool) -> Manifest:
    """Write the bundle of a run that has been evaluated; an existing bundle is replaced only with `force`.

    Raises TrainingError, and leaves everything as it was, when the run was not evaluated, when the graph
    differs from PyTorch, or when the bundle exists or cannot be written.
    """
    check_target(bundle, force=force)
    evaluation, report = evaluated(run)
    images, parts = run.data(dataset)
    if evaluation.measured_on != measured_on(dataset):
        raise TrainingError(
            f"the run in {run.folder} was evaluated with other pictures than {dataset.folder} holds: evaluate it again"
        )
    select = images.images[parts.select]
    model = run.model()
    served = ServedNetwork(model)
    input_size = run.config.input_size
    side = photograph_side(run.config.enlarge) if evaluation.photographs else input_size
    if run.graph is None:
        graph = build_graph(served, side=input_size, any_size=side != input_size).SerializeToString()
        check_parity(served, graph, select[:PARITY_IMAGES])
    else:
        graph = run.graph
        check_quantised(model, graph, select[:PARITY_IMAGES], any_size=side != input_size)
    # A user's own pictures are perhaps not for everybody: none of them is copied to check a bundle.
    check = select[0].numpy() if run.of.is_cifar10 else textures(1, 0, input_size)[0]
    enlarged = _enlarged(check, side)
    if evaluation.photographs and run.graph is None:
        check_parity(served, graph, torch.from_numpy(enlarged[None]))
    files = _files(run, dataset, evaluation, report, parts, graph)
    files["mistakes.png"] = _mistakes(evaluation.test, report, dataset.test.images.numpy(), run.of.classes)
    fields = _fields(run, dataset, model, parts, evaluation, report, _self_check(graph, check))
    if evaluation.photographs:
        fields["photographs"] = fit_photographs(evaluation.photographs, side).model_dump()
        fields["photograph_self_check"] = _self_check(graph, enlarged)
    if run.graph is not None:
        fields["self_check"]["tolerance"] = rounding_tolerance(graph, [check, *select[:PARITY_IMAGES].numpy()])
    if run.graph is not None and evaluation.photographs:
        others = [_enlarged(image, side) for image in select[:PARITY_IMAGES].numpy()]
        fields["photograph_self_check"]["tolerance"] = rounding_tolerance(graph, [enlarged, *others])
    return write_bundle(bundle, fields, files, report)


def render_card_again(bundle: Path) -> Manifest:
    """Replace the model card of `bundle` by one of the present template; no other file changes.

    Raises TrainingError when the bundle is damaged or cannot be written.
    """
    try:
        content = Bundle.load(bundle)
    except BundleError as error:
        raise TrainingError(str(error)) from None
    fields = json.loads((bundle / MANIFEST).read_bytes())
    files = {name: content.read(name) for name in fields["files"] if name != CARD}
    return write_bundle(bundle, fields, files, content.report)


def write_bundle(bundle: Path, fields: dict[str, Any], files: dict[str, bytes], report: Report) -> Manifest:
    """Add the model card and the manifest to `files`, and write them; `fields` need no digests."""
    # The card needs the manifest, and the manifest the card's digest: a manifest without digests is enough for it.
    draft = Manifest.model_validate(fields | {"files": {}, "digest": sha256(b"")})
    render = render_card if draft.data_set.name == DESCRIPTION.name else render_own_card
    files = files | {CARD: render(draft, report).encode()}
    fields = fields | {"files": {name: sha256(content) for name, content in sorted(files.items())}}
    fields["digest"] = manifest_digest(fields)
    try:
        write_folder_atomically(bundle.resolve(), files | {MANIFEST: render_manifest(fields)}, _verify)
    except OSError as error:
        raise _unwritable(bundle, error) from None
    return Manifest.model_validate(fields)


def bundle_name(architecture: Architecture, of: Description = DESCRIPTION, *, quantised: bool = False) -> str:
    """The model's name: networks of different costs have different names, but for those of a user's own classes."""
    integers = "_int8" if quantised else ""
    if not of.is_cifar10:
        return f"mobilenet_v2_{of.name}{integers}"
    enlarged = f"_enlarged_{architecture.enlarge}" if architecture.enlarge > 1 else ""
    strides = f"_strides_{architecture.stem_stride}_{architecture.stage2_stride}"
    return NAME + SHIPPED.get(architecture, enlarged + strides) + integers


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
        try_to_write(bundle.resolve().parent)
    except OSError as error:
        raise _unwritable(bundle, error) from None


def check_parity(served: ServedNetwork, graph: bytes, images: Tensor) -> dict[str, float]:
    """The largest difference between ONNX Runtime's and PyTorch's outputs, by output.

    Raises TrainingError when one is larger than is allowed.
    """
    logits, pixels = predict_logits(served.model, images).numpy(), images.numpy()
    by_graph = {LOGITS: run_graph(graph, pixels), CLASS_MAPS: run_graph(graph, pixels, CLASS_MAPS).mean((2, 3))}
    differences = {name: float(np.abs(found - logits).max()) for name, found in by_graph.items()}
    allowed = max(PARITY, RELATIVE_PARITY * float(np.abs(logits).max()))
    for name, difference in differences.items():
        if not difference < allowed:  # not <=: both may be infinite
            raise TrainingError(
                f"{name} of the ONNX graph differ from PyTorch's by {difference:.2g} on {len(images)} images, "
                f"{allowed:.2g} is allowed: nothing was written"
            )
    return differences


def _self_check(graph: bytes, image: npt.NDArray[np.uint8]) -> dict[str, Any]:
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    (logits,) = run_graph(graph, image[None])
    return {"image": base64.b64encode(png.getvalue()).decode(), "logits": [float(value) for value in logits]}


def _enlarged(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """A stand-in for a photograph: no photograph is copied into the bundle."""
    return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def _files(
    run: FinishedRun, dataset: DataSet, evaluation: Evaluation, report: Report, parts: Split, graph: bytes
) -> dict[str, bytes]:
    assert report.calibration and report.selective and report.robustness
    return {
        GRAPH: graph,
        **({CHECKPOINT: run.weights} if run.graph is None else {}),
        REPORT: (run.folder / REPORT).read_bytes(),
        REPORT_TEXT: report_text(evaluation.test, run.of.classes).encode(),
        HISTORY: history_csv([row.model_dump() for row in run.history]).encode(),
        SPLIT: (json.dumps(dataset.membership(parts), separators=(",", ":")) + "\n").encode(),
        "accuracy_and_loss.png": plots.accuracy_and_loss(run.history),
        "confusion_matrix.png": plots.confusion(np.array(report.confusion_matrix), run.of.classes),
        "reliability.png": plots.reliability(evaluation.test, report.calibration),
        "risk_coverage.png": plots.risk_coverage(report.selective),
        "robustness.png": plots.robustness(report.robustness),
    }


def _mistakes(test: Predictions, report: Report, images: npt.NDArray[np.uint8], classes: Sequence[str]) -> bytes:
    """The picture of the wrongly classified test images that the network was most sure of."""
    assert report.calibration
    confidence = test.probabilities(report.calibration.temperature).max(1)
    wrong = np.flatnonzero(~test.correct())
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    labels, answers = test.labels.numpy()[worst], test.predicted()[worst]
    return plots.mistakes(images[worst], labels, answers, confidence[worst], classes)


def _fields(
    run: FinishedRun,
    dataset: DataSet,
    model: Preprocessed,
    parts: Split,
    evaluation: Evaluation,
    report: Report,
    self_check: dict[str, Any],
) -> dict[str, Any]:
    """bundle.json without `files` and `digest`."""
    config, side = run.config, run.config.input_size
    assert report.calibration and report.abstention
    temperature, levels = report.calibration.temperature, conformal_levels(run, evaluation.calibrate)
    conformal = fit_conformal(evaluation.calibrate, temperature, levels).model_dump() if levels else None
    own = not run.of.is_cifar10
    return {
        "schema_version": SCHEMA_VERSION,
        "name": bundle_name(config.architecture, run.of, quantised=run.graph is not None),
        "version": f"{OWN_VERSION if own else VERSION}+{run.weights_sha256[:8]}",
        "classes": list(run.of.classes),
        **({"data_set": {"name": run.of.name, "title": run.of.title, "one_kind": True}} if own else {}),
        "architecture": config.architecture.model_dump(),
        "input": {"height": side, "width": side, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
        "macs": count_macs(model.network, side, side),
        "parameters": count_parameters(model.network),
        "calibration": {"temperature": temperature, "conformal": conformal},
        "abstention": {
            "method": SERVED,
            "temperature": evaluation.temperature,
            "threshold": report.abstention.threshold,
            "kept": KEPT,
        },
        "reference": drift_reference(evaluation.calibrate, temperature).model_dump(),
        **({"quantisation": run.quantisation.model_dump()} if run.quantisation else {}),
        "self_check": self_check,
        "provenance": {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **run.environment,
            "continued": list(run.continued),
            "config": config.as_dict(),
            "data": {"train": run.train_data, "select": run.selection_data, **dataset.balance(parts)},
            "initial_weights": run.initial_weights,
            "teacher": run.teacher,
            "seeds": {"run": config.seed, "split": config.split_seed},
            "split": {"file": SPLIT} | {name: len(index) for name, index in vars(parts).items()},
            "cpu_hours": round(run.cpu_seconds / 3600, 3),
            **({"gpu": dict(run.gpu)} if run.gpu else {}),
            **({"photographs": run.photographs} if run.photographs else {}),
        },
    }


def _verify(folder: Path) -> None:
    try:
        Bundle.load(folder)
    except BundleError as error:
        raise TrainingError(f"the bundle was not written: {error}") from None


def _unwritable(bundle: Path, error: OSError) -> TrainingError:
    return TrainingError(f"cannot write --bundle {bundle} ({error.strerror}): name a folder that can be written")
