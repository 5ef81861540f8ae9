"""The folder of a run: its files, the record of what was asked for, and the finished run read back.

run.json            the configuration, the data, the initial weights and the machine
state.safetensors   everything needed to resume; replaced as a whole every two minutes
teacher.safetensors the teachers' logits, if there are teachers; grows view by view
history.csv         one row per epoch
metrics.jsonl       the figures of the run while it trains (`training.fit.metrics`)
tensorboard/        the same for TensorBoard, with --tensorboard
accuracy_and_loss.png   the curve, after `show`
weights.safetensors the averaged weights of the finished run
model.onnx          its graph of 8-bit integers, if the run was quantised (`training.export.quantised_run`)
logits.safetensors  the finished run's outputs for each split, after `evaluate`
report.json, .txt   the report on the test split, after `evaluate`
bundle/             where `export` writes by default
"""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torchvision.models.mobilenetv2 import MobileNetV2

from app.bundle.manifest import Quantisation, sha256
from app.bundle.names import GRAPH, HISTORY, MANIFEST, REPORT, REPORT_TEXT
from app.bundle.report import Epoch
from app.network.mobilenet import Preprocessed, mobilenet_v2
from training.atomic_files import write_atomically
from training.config import IMAGENET_MEAN, IMAGENET_STD, Config
from training.data.cifar10 import DESCRIPTION, LabelledImages, Split
from training.data.data_set import DataSet
from training.data.description import Description
from training.errors import TrainingError
from training.fit.checkpoint import Checkpoint, Progress, read_checkpoint, read_progress
from training.plural import plural
from training.provenance import continued, environment

RUN, STATE, WEIGHTS = "run.json", "state.safetensors", "weights.safetensors"
TEACHER_LOGITS, LOGITS, BUNDLE = "teacher.safetensors", "logits.safetensors", "bundle"
METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
__all__ = [
    "BUNDLE",
    "HISTORY",
    "LOGITS",
    "METRICS",
    "REPORT",
    "REPORT_TEXT",
    "RUN",
    "STATE",
    "TEACHER_LOGITS",
    "TENSORBOARD",
    "WEIGHTS",
]


def claim(folder: Path, config: Config, identity: Mapping[str, Any], here: Mapping[str, Any]) -> Checkpoint | None:
    """Begin a run in `folder`, or return the checkpoint of the same run that is there already.

    `identity` names the data and the weights that decide the run beside `config`; `here` is the environment that the
    run goes on in, which run.json records. Raises TrainingError when the folder holds another or a damaged run, or
    cannot be written.
    """
    path = folder / RUN
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_record(path, {"config": config.as_dict(), **identity}, here, Progress())
            return None
        record = json.loads(path.read_bytes())
        differences = config.differences(record["config"])
        origin = ("data_set", "initial_weights", "train_data", "selection_data", "teacher", "photograph_data")
        names = (*origin, "quantisation")
        differences += [f"{name} differ" for name in names if identity.get(name) != record.get(name)]
    except OSError as error:
        raise TrainingError(
            f"--run-dir {folder} cannot be used ({error.strerror}): name a folder that can be written"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is damaged ({error}): delete the folder to start the run again") from None
    if differences:
        raise TrainingError(
            f"--run-dir {folder} holds another run: {'; '.join(differences)}. Use its values, or another folder"
        )
    checkpoint = read_checkpoint(folder / STATE)
    progress = checkpoint.progress if checkpoint else Progress()
    if progress.epoch < config.epochs:
        _write_record(path, record, here, progress)
    return checkpoint


def _write_record(path: Path, record: Mapping[str, Any], here: Mapping[str, Any], progress: Progress) -> None:
    content = json.dumps(continued(record, here, progress.epoch, progress.step), indent=2)
    write_atomically(path, content.encode())


def history_csv(rows: list[dict[str, Any]]) -> str:
    """One row for each Epoch, as a dictionary."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(Epoch.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


@dataclass(frozen=True)
class FinishedRun:
    """A run's configuration, origin and results. `weights` is the content of a safetensors file.

    A quantised run has a `graph`, the content of an ONNX file, which answers in place of the weights.
    """

    folder: Path
    config: Config
    initial_weights: str
    train_data: str
    selection_data: str
    environment: Mapping[str, Any]
    history: tuple[Epoch, ...]
    cpu_seconds: float
    weights: bytes
    teacher: str | None = None  # sha256 of the teacher's graph; of several, separated by commas
    continued: tuple[Mapping[str, Any], ...] = ()  # later environments, each with the epoch and step it took over at
    gpu: Mapping[str, Any] | None = None  # of training.gpu: its recipe, steps and seconds
    photographs: int = 0  # pictures that training saw beside the images
    photograph_data: str | None = None  # their digest
    of: Description = DESCRIPTION  # the images
    quantisation: Quantisation | None = None
    graph: bytes | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises TrainingError when the folder holds no run, one that has not finished, or a damaged one."""
        try:
            record = json.loads((folder / RUN).read_bytes())
            config = Config.recorded(record["config"])
            quantised = record.get("quantisation")
            progress = read_progress(folder / STATE)
            if progress is None or not (folder / WEIGHTS).exists():
                raise _Unfinished(folder, progress.epoch if progress else 0, config)
            return cls(
                folder=folder,
                config=config,
                initial_weights=record["initial_weights"],
                train_data=record["train_data"],
                selection_data=record["selection_data"],
                environment=record.get("environment") or environment(),
                history=tuple(Epoch.model_validate(row) for row in progress.history),
                cpu_seconds=progress.cpu_seconds,
                weights=(folder / WEIGHTS).read_bytes(),
                teacher=record.get("teacher"),
                continued=tuple(record.get("continued", ())),
                gpu=record.get("gpu"),
                photographs=int(record.get("photographs", 0)),
                photograph_data=record.get("photograph_data"),
                of=Description.recorded(record["data_set"]) if "data_set" in record else DESCRIPTION,
                quantisation=Quantisation.model_validate(quantised) if quantised else None,
                graph=_read_graph(folder, record["graph_sha256"]) if quantised else None,
            )
        except _Unfinished:
            raise
        except FileNotFoundError as error:
            if (folder / RUN).exists():
                raise TrainingError(f"{folder} holds a run without {Path(error.filename).name}") from None
            raise TrainingError(f"{folder} holds no run: `python -m training fit` makes one") from None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, ValidationError, TrainingError) as error:
            raise TrainingError(f"{folder} holds a damaged run ({str(error).splitlines()[0]})") from None

    @property
    def weights_sha256(self) -> str:
        """Of what answers: the weights, or the graph of a quantised run."""
        return sha256(self.weights if self.graph is None else self.graph)

    def network(self) -> MobileNetV2:
        """The trained network, in evaluation mode."""
        network = mobilenet_v2(self.config.architecture, len(self.of.classes), self.config.input_size)
        try:
            network.load_state_dict(load_safetensors(self.weights))
        except (SafetensorError, RuntimeError) as error:
            raise TrainingError(f"{self.folder / WEIGHTS} is damaged ({str(error).splitlines()[0]})") from None
        if not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
            raise TrainingError(f"{self.folder / WEIGHTS}: not all weights are finite")
        return network.eval()

    def model(self) -> Preprocessed:
        """The trained network with its preprocessing, in evaluation mode."""
        return Preprocessed(self.network(), IMAGENET_MEAN, IMAGENET_STD).eval()

    def data(self, dataset: DataSet) -> tuple[LabelledImages, Split]:
        """The training images and this run's split of them. Raises TrainingError when they are not the run's."""
        if dataset.description.is_cifar10 and not self.of.is_cifar10:
            raise TrainingError(
                f"the run in {self.folder} was trained on your own classes ({self.of.title}): "
                "name their folder with --data"
            )
        option = "--data-dir" if dataset.description.is_cifar10 else "--data"
        others = f"{option} {dataset.folder} holds other images than the run in {self.folder} was made with"
        if dataset.description != self.of:
            raise TrainingError(others)
        images, parts = dataset.training, dataset.split(self.config.split_seed)
        seen: list[tuple[str | None, str | None]] = [(images.take(parts.select).digest(), self.selection_data)]
        if not self.of.is_cifar10:  # whose files never change
            unknown = dataset.others
            seen.append((images.take(parts.train).digest(), self.train_data))
            seen.append((unknown.training.digest() if unknown else None, self.photograph_data))
        if any(here != there for here, there in seen):
            raise TrainingError(others)
        return images, parts


def _read_graph(folder: Path, digest: str) -> bytes:
    """The graph of a quantised run. Raises TrainingError unless it is the one that `quantise` made."""
    graph = (folder / GRAPH).read_bytes()
    if sha256(graph) != digest:
        raise TrainingError(f"{GRAPH} is not the graph that was made")
    return graph


class _Unfinished(TrainingError):
    def __init__(self, folder: Path, epochs: int, config: Config) -> None:
        super().__init__(
            f"the run in {folder} is not finished ({epochs} of {plural(config.epochs, 'epoch')}): "
            f"`python -m training fit` with its options goes on with it"
        )


def split_seed(folder: Path, of: str = DESCRIPTION.name) -> int | None:
    """The seed of the split that the weights in `folder`, a bundle or a run, were trained with; None if unknown.

    It is the seed of a split of the images with the name `of`: None, too, for weights of others.
    """
    found = _split(folder)
    return found[1] if found is not None and found[0].get("name") == of else None


def check_cifar10(option: str, folder: Path) -> None:
    """Raises TrainingError when the weights in `folder`, a bundle or a run, are of a user's own classes."""
    found = _split(folder)
    if found is not None and (of := found[0]).get("name") != DESCRIPTION.name:
        title = of.get("title", of.get("name"))
        raise TrainingError(
            f"{option} {folder} was trained on your own classes ({title}): this command takes only what was trained on "
            f"{DESCRIPTION.title}"
        )


def _split(folder: Path) -> tuple[Mapping[str, Any], int] | None:
    """The description of the images that the weights in `folder` were trained on, and the seed of their split."""
    for name in (RUN, MANIFEST):
        try:
            record = json.loads((folder / name).read_bytes())
            of = dict(record.get("data_set", DESCRIPTION.as_dict()))
            # A bundle keeps its run's record under "provenance".
            return of, int(record.get("provenance", record)["config"]["split_seed"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def check_split(option: str, folder: Path, seed: int, of: str = DESCRIPTION.name) -> None:
    """Raises TrainingError when the weights in `folder` were trained with another split than that of `seed`.

    `of` is the name of the images that are split, see `split_seed`.
    """
    found = split_seed(folder, of)
    if found not in (None, seed):
        raise TrainingError(
            f"{option} {folder} was trained with --split-seed {found}, not {seed}: "
            f"it has seen images that would be held out here"
        )
