"""A finished run that answers with a graph of 8-bit integers, made from a bundle or another finished run.

    quantise(Path("models/mobilenet_v2_cifar10"), dataset, Path("runs/int8"))

The folder is a finished run for the other commands, with the source's configuration, history, origin and weights. Its
run.json says `quantisation`, and its model.onnx is what `evaluate` judges and `export` ships.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import torch
from safetensors.torch import save as save_safetensors

from app.bundle.manifest import Quantisation, sha256
from app.bundle.names import CHECKPOINT, GRAPH, MANIFEST
from app.bundle.reader import Bundle, BundleError
from app.network.served import ServedNetwork
from training.atomic_files import try_to_write, write_folder_atomically
from training.config import Config
from training.data.cifar10 import DESCRIPTION
from training.data.data_set import DataSet
from training.errors import TrainingError
from training.evaluate.evaluate import saved_evaluation
from training.evaluate.photographs import photograph_side
from training.export.bundle import bundle_name
from training.export.graph import build_graph
from training.export.quantisation import ACTIVATIONS, CALIBRATION, WEIGHT_BITS, quantised
from training.fit.checkpoint import Progress
from training.fit.run_folder import RUN, STATE, WEIGHTS, FinishedRun

CALIBRATION_IMAGES, SEED = 512, 0  # 2,048 gave the same answers


class Source(NamedTuple):
    """A float network. `photographs`: whether its graph takes them, too."""

    run: FinishedRun
    name: str
    photographs: bool


def read_source(folder: Path) -> Source:
    """The network in `folder`, a bundle or a finished run.

    Raises TrainingError when it is neither, is quantised already, or is a bundle of a user's own classes.
    """
    if not (folder / MANIFEST).exists() and not (folder / RUN).exists():
        raise TrainingError(
            f"{folder} holds neither a bundle nor a run: name the folder of one (addresses are not taken)"
        )
    if not (folder / MANIFEST).exists():
        run = FinishedRun.read(folder)
        name = f"{bundle_name(run.config.architecture, run.of)} {run.weights_sha256[:8]}"
        evaluation = saved_evaluation(run)
        source = Source(run, name, evaluation is not None and evaluation.photographs is not None)
    else:
        source = _read_bundle(folder)
    if source.run.graph is not None:
        raise _quantised(folder)
    return source


def quantise(source: Source, dataset: DataSet, folder: Path) -> FinishedRun:
    """Write the quantised run of `source` to `folder`, which must not exist or be empty.

    The ranges of activations are those on CALIBRATION_IMAGES of the training split. Raises TrainingError.
    """
    run = source.run
    check_folder(folder)
    images, parts = run.data(dataset)
    order = torch.randperm(len(parts.train), generator=torch.Generator().manual_seed(SEED))
    chosen = images.images[parts.train[order[:CALIBRATION_IMAGES]]].numpy()
    any_size = source.photographs and photograph_side(run.config.enlarge) != run.config.input_size
    floats = build_graph(ServedNetwork(run.model()), side=run.config.input_size, any_size=any_size)
    record = Quantisation(
        weight_bits=WEIGHT_BITS,
        activations=ACTIVATIONS,
        calibration=CALIBRATION,
        calibration_images=len(chosen),
        source=source.name,
        source_sha256=sha256(run.weights),
        onnxruntime=onnxruntime.__version__,
    )
    progress = Progress(
        epoch=run.config.epochs, cpu_seconds=run.cpu_seconds, history=[row.model_dump() for row in run.history]
    )
    graph = quantised(floats.SerializeToString(), chosen)
    made = {"quantisation": record.model_dump(), "graph_sha256": sha256(graph)}
    files = {
        RUN: json.dumps(_record(run) | made, indent=2).encode(),
        STATE: save_safetensors({}, metadata={"progress": json.dumps(asdict(progress))}),
        WEIGHTS: run.weights,
        GRAPH: graph,
    }
    try:
        write_folder_atomically(folder.resolve(), files, _verify)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return FinishedRun.read(folder)


def check_folder(folder: Path) -> None:
    """Raises TrainingError unless `folder` is missing or empty, and can be written."""
    try:
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise TrainingError(f"--run-dir {folder} exists: name another folder")
        try_to_write(folder.resolve().parent)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(f"--run-dir {folder} cannot be used ({error.strerror}): name a folder that can be written")


def _verify(folder: Path) -> None:
    FinishedRun.read(folder)


def _read_bundle(folder: Path) -> Source:
    try:
        bundle = Bundle.load(folder)
    except BundleError as error:
        raise TrainingError(str(error)) from None
    manifest, origin = bundle.manifest, bundle.manifest.provenance
    if manifest.data_set.name != DESCRIPTION.name:
        raise TrainingError(
            f"{folder} is a bundle of your own classes ({manifest.data_set.title}): "
            "name the run that it was exported from"
        )
    if CHECKPOINT not in bundle:
        raise _quantised(folder)
    try:
        run = FinishedRun(
            folder=folder,
            config=Config.recorded(origin["config"]),
            initial_weights=origin["initial_weights"],
            train_data=origin["data"]["train"],
            selection_data=origin["data"]["select"],
            environment={name: origin[name] for name in ("git_commit", "versions", "hardware")},
            history=tuple(bundle.report.history),
            cpu_seconds=origin["cpu_hours"] * 3600,
            weights=bundle.read(CHECKPOINT),
            teacher=origin.get("teacher"),
            continued=tuple(origin.get("continued", ())),
            gpu=origin.get("gpu"),
            photographs=int(origin.get("photographs", 0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{folder / MANIFEST}: provenance does not describe a run ({error!r})") from None
    return Source(run, f"{manifest.name} {manifest.version}", manifest.photographs is not None)


def _quantised(folder: Path) -> TrainingError:
    return TrainingError(f"{folder} is quantised already: name the float network")


def _record(run: FinishedRun) -> dict[str, Any]:
    """run.json of `run`."""
    known = {
        "config": run.config.as_dict(),
        "initial_weights": run.initial_weights,
        "train_data": run.train_data,
        "selection_data": run.selection_data,
        "environment": dict(run.environment),
        "continued": list(run.continued),
        "photographs": run.photographs,
    }
    maybe = {
        "data_set": None if run.of.is_cifar10 else run.of.as_dict(),
        "teacher": run.teacher,
        "photograph_data": run.photograph_data,
        "gpu": run.gpu and dict(run.gpu),
    }
    return known | {name: value for name, value in maybe.items() if value is not None}
