"""The model card: what a stranger must know before using the weights, with Hugging Face front matter.

The text is the template card.md; the history of weights and the figures of public models are models/lineage.json.
"""

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from pydantic import BaseModel

from app.bundle.manifest import Manifest
from app.bundle.report import Report
from training.config import Config
from training.evaluate.metrics import f1_intervals
from training.export.card_trust import render_card_trust
from training.plural import plural
from training.provenance import describe

TEMPLATE = Path(__file__).with_name("card.md")
PYTORCH = Path(__file__).with_name("card_pytorch.md")
LINEAGE = Path(__file__).parents[2] / "models/lineage.json"


class Runs(BaseModel):
    """The runs that made initial weights, the latest first, and the digest of what the earliest began with."""

    runs: list[str]
    began_with: str


class PublicModel(BaseModel):
    name: str
    url: str | None
    test_accuracy: str
    how: str


class Lineage(BaseModel):
    """Known initial weights by their digest, and public models to compare with."""

    imagenet_weights: dict[str, str] = {}
    runs: dict[str, Runs] = {}
    teachers: dict[str, str] = {}
    public_models: list[PublicModel] = []

    @classmethod
    def read(cls) -> "Lineage":
        """Empty outside the repository: initial weights are then named by their digests."""
        return cls.model_validate_json(LINEAGE.read_bytes()) if LINEAGE.exists() else cls()

    def describe(self, digest: str) -> str:
        """What weights with that digest are, and what they began with: the licence is that of the first weights."""
        if digest in self.imagenet_weights:
            return self.imagenet_weights[digest]
        if digest not in self.runs:
            return f"`{digest}`"
        last, *before = self.runs[digest].runs
        chain = "".join(f"which began with those of {run}, " for run in before)
        first = self.imagenet_weights[self.runs[digest].began_with]
        return f"those of the run {last} (docs/log/runs.md), {chain}which began with\n  {first}"


# What the card says of photographs, by whether the model has promises for them.
OF_PHOTOGRAPHS = """\
- It learned from small images of one object in the middle, and from photographs of few kinds of each class, seen with
  64x64 pixels. Of other kinds, "How far to trust it" says how often it is right."""
OF_THUMBNAILS = """\
- It was trained on small images of one object in the middle. A photograph is scaled to 32x32 pixels, and is often
  classified wrongly."""


def render_card(manifest: Manifest, report: Report) -> str:
    """README.md of the bundle that `manifest` and `report` describe."""
    origin, lineage = manifest.provenance, Lineage.read()
    config, sizes = origin["config"], origin["split"]
    from_another_run = _from_another_run(origin, lineage)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=manifest.name,
        version=manifest.version,
        tags=tags(manifest),
        quantisation=quantisation(manifest),
        pytorch=_pytorch(manifest),
        macs=f"{manifest.macs / 1e6:.1f}",
        parameters=f"{manifest.parameters / 1e6:.2f}",
        n=f"{report.n:,}",
        accuracy=f"{report.accuracy.value:.4f}",
        macro_f1=f"{report.macro_avg.f1:.4f}",
        accuracy_text=f"{percent(report.accuracy.value)} (95 % interval {interval(report.accuracy.ci95)})",
        classes=class_rows(report),
        f1_method=f1_method(report),
        public_models="\n".join(map(_public_row, lineage.public_models)),
        trust=render_card_trust(manifest, report),
        epochs=plural(config["epochs"], "epoch"),
        effort=_effort(origin, from_another_run),
        command=_command(origin),
        lr=f"{config['lr']:g}",
        settings="\n".join(f"| `{name}` | {value} |" for name, value in _settings(config)),
        how=_how(origin, from_another_run),
        split_seed=config["split_seed"],
        train=f"{sizes['train']:,}",
        select=f"{sizes['select']:,}",
        calibrate=f"{sizes['calibrate']:,}",
        initial=lineage.describe(str(origin["initial_weights"])),
        photographs=OF_PHOTOGRAPHS if manifest.photographs else OF_THUMBNAILS,
        teacher=_teacher(origin.get("teacher"), lineage) + _photographs(origin, shown=manifest.photographs is not None),
        commit=origin["git_commit"] or "not under git",
        machine="; ".join([describe(origin["hardware"]), *map(took_over, origin.get("continued", []))]),
        versions=", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
        augmentation=augmentation(config, by_gpu=bool(origin.get("gpu"))) + _mixing(origin),
    )


def _settings(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """All but the size of the input, which CIFAR-10 decides."""
    return [one for one in Config.recorded(config).as_dict().items() if one[0] != "input_size"]


def _public_row(model: PublicModel) -> str:
    name = f"[{model.name}]({model.url})" if model.url else model.name
    return f"| {name} | {model.test_accuracy} | {model.how} |"


def tags(manifest: Manifest) -> str:
    """For the front matter."""
    return ", ".join(["image-classification", "mobilenet_v2", "onnx", "int8" if manifest.quantisation else "pytorch"])


def quantisation(manifest: Manifest) -> str:
    """A paragraph after the first one, for a graph of integers; otherwise empty."""
    made = manifest.quantisation
    if made is None:
        return ""
    return (
        f"\n\nIts graph computes with {made.weight_bits}-bit integers, made from {made.source} without training. "
        f"The ranges\nof activations are those on {made.calibration_images:,} training images. All figures below are "
        "of this graph, and\ntemperatures and thresholds were fitted to it."
    )


def _pytorch(manifest: Manifest) -> str:
    if manifest.quantisation:
        return f"There is no checkpoint for PyTorch: that is in the bundle of {manifest.quantisation.source}."
    return Template(PYTORCH.read_text(encoding="utf-8")).substitute(name=manifest.name).rstrip()


def class_rows(report: Report) -> str:
    mean = report.macro_avg
    rows = [
        (row.label, row.precision, row.recall, row.f1, interval(row.f1_ci95), row.support) for row in report.per_class
    ]
    rows.append(("mean of the classes", mean.precision, mean.recall, mean.f1, "", mean.support))
    return "\n".join(
        f"| {label} | {percent(precision)} | {percent(recall)} | {percent(f1)} | {f1_interval} | {support:,} |"
        for label, precision, recall, f1, f1_interval, support in rows
    )


def f1_method(report: Report) -> str:
    """How the report's intervals of F1 were made; reports of older bundles have others."""
    ours = f1_intervals(np.array(report.confusion_matrix))
    same = np.allclose(ours, [row.f1_ci95 for row in report.per_class], atol=1e-6)
    return "Wilson's, too (arXiv:2309.14621)" if same else "a bootstrap over the images"


def augmentation(config: Mapping[str, Any], side: int = 32, *, by_gpu: bool = False) -> str:
    """What was done to images of `side` pixels."""
    mirrored = "at random" if by_gpu else f"in every second {'view' if config.get('views') else 'epoch'}"
    done = [
        text
        for wanted, text in (
            (config["flip"], f"mirrored {mirrored}"),
            (config["shift"], f"shifted by up to {config['shift'] * side // 32} pixels"),
            (config["zoom"] > 1, f"half of them zoomed by a factor of up to {config['zoom']:g}"),
            (config["colour"], f"brightness, contrast and saturation changed by up to {config['colour'] * 100:.0f} %"),
            (config["cutout"], f"a square of {config['cutout'] * side // 32} pixels hidden"),
        )
        if wanted
    ]
    return f"Images are {', '.join(done)}." if done else "Images are shown as they are."


def took_over(environment: dict[str, Any]) -> str:
    commit = environment["git_commit"] or "not under git"
    where = f"from step {environment['step'] + 1} of epoch {environment['epoch'] + 1} on"
    return f"{where}: {describe(environment['hardware'])}, code {commit}"


def _how(origin: Mapping[str, Any], from_another_run: bool) -> str:
    """A cell of the table of public models: initial weights, image size, epochs and teachers."""
    epochs = f"32 px, {plural(origin['config']['epochs'], 'epoch')}"
    if from_another_run:
        how = f"{epochs} after those of the weights that it began with"
    else:
        random = str(origin["initial_weights"]).startswith("random:")
        how = f"from {'scratch' if random else 'ImageNet'}, {epochs}"
    if not origin.get("teacher"):
        return how
    teachers = len(origin["teacher"].split(", "))
    return f"{how}, taught by {teachers} network{'s' if teachers > 1 else ''}"


def _alone(origin: Mapping[str, Any], from_another_run: bool) -> str:
    """What the core hours do not include."""
    others = ["its initial weights"] if from_another_run else []
    others += ["its teachers"] if origin.get("teacher") else []
    return f" (without those of {' and '.join(others)})" if others else ""


def _from_another_run(origin: Mapping[str, Any], lineage: Lineage) -> bool:
    initial = str(origin["initial_weights"])
    return initial not in lineage.imagenet_weights and not initial.startswith("random:")


def _teacher(digests: str | None, lineage: Lineage) -> str:
    if not digests:
        return ""
    if digests in lineage.teachers:
        return f"- It also learned from the answers of {lineage.teachers[digests]}.\n"
    named = [f"`{digest}`" for digest in digests.split(", ")]
    if len(named) == 1:
        return f"- It also learned from the answers of another network, whose graph has the sha256 {named[0]}.\n"
    return (
        f"- It also learned from the mean answers of {len(named)} networks with graphs of sha256 {', '.join(named)}.\n"
    )


def _effort(origin: Mapping[str, Any], from_another_run: bool) -> str:
    """The time that the training took, and what it does not include."""
    gpu = origin.get("gpu")
    time = f"{gpu['measured_seconds']:.0f} seconds on one GPU" if gpu else f"{origin['cpu_hours']:.2f} core hours"
    return time + _alone(origin, from_another_run)


def _command(origin: Mapping[str, Any]) -> str:
    if origin.get("gpu"):
        return (
            "`python -m training.gpu` (docs/gpu.md) trains such a network. It makes as many steps as fit into the\n"
            "time, so the same weights do not come out twice"
        )
    return (
        "`python -m training all` with these values, and with `--init` and\n"
        "`--teacher` for what [provenance](#provenance) names"
    )


def _mixing(origin: Mapping[str, Any]) -> str:
    gpu = origin.get("gpu")
    if not gpu:
        return ""
    return f"\nIn {gpu['mixed'] * 100:.0f} % of the batches they are mixed (mixup, cutmix)."


def _photographs(origin: Mapping[str, Any], *, shown: bool) -> str:
    count = origin.get("photographs")
    if not count:
        return ""
    if not origin.get("gpu"):
        return f"- Every batch held photographs, too: {count:,} of the folder that `--photographs` named.\n"
    return (
        f"- Every batch held photographs of 64x64 pixels, too: {count:,} of Tiny-ImageNet, Caltech-101 and PACS,\n"
        "  of nine of the classes (not deer) and of other things. Tiny-ImageNet has its own address\n"
        "  (cs231n.stanford.edu/tiny-imagenet-200.zip); no command of this project fetches the three. ImageNet's\n"
        "  pictures are for research.\n"
    ) + ("" if shown else "  The service does not show the model 64 pixels: it scales a photograph to 32x32.\n")


def percent(fraction: float) -> str:
    return f"{fraction * 100:.2f} %"


def interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0] * 100:.2f} to {percent(bounds[1])}"
