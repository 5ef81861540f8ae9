"""The model card of a bundle of a user's own classes. The text is the template card_own.md."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from app.bundle.manifest import Manifest
from app.bundle.report import Report
from training.config import Config
from training.export.card import (
    Lineage,
    augmentation,
    class_rows,
    f1_method,
    interval,
    percent,
    quantisation,
    tags,
    took_over,
)
from training.export.card_trust import render_card_trust
from training.plural import plural
from training.provenance import describe

TEMPLATE = Path(__file__).with_name("card_own.md")
PARTS = ("train", "select", "calibrate", "test")
MOST_ROWS = 100  # of classes


def render_own_card(manifest: Manifest, report: Report) -> str:
    """README.md of the bundle that `manifest` and `report` describe."""
    origin = manifest.provenance
    config, data = origin["config"], origin["data"]
    labelled = [row.model_copy(update={"label": escaped(row.label)}) for row in report.per_class]
    worst = sorted(labelled, key=lambda row: row.f1)[:MOST_ROWS] if len(labelled) > MOST_ROWS else labelled
    shown = report.model_copy(update={"per_class": worst})
    escaped_classes = manifest.model_copy(update={"classes": [escaped(label) for label in manifest.classes]})
    rows = class_rows(shown)
    if len(labelled) > MOST_ROWS:
        rows += f"\n\nThe {MOST_ROWS} of {len(labelled):,} classes with the lowest F1."
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=manifest.name,
        version=manifest.version,
        tags=tags(manifest),
        quantisation=quantisation(manifest),
        side=manifest.input.height,
        count=f"{len(manifest.classes):,}",
        macs=f"{manifest.macs / 1e6:.1f}",
        parameters=f"{manifest.parameters / 1e6:.2f}",
        accuracy_text=f"{percent(report.accuracy.value)} (95 % interval {interval(report.accuracy.ci95)})",
        baseline=percent(max(row.support for row in report.per_class) / report.n),
        n=f"{report.n:,}",
        classes=rows,
        f1_method=f1_method(report),
        trust=render_card_trust(escaped_classes, report),
        parts=" | ".join(PARTS),
        rules=" | ".join("---" for _ in PARTS),
        balance="\n".join(_balance(data)),
        near_duplicates=f"{data['near_duplicates']:,}",
        left_out=f"{data['left_out']:,}",
        epochs=plural(config["epochs"], "epoch"),
        effort=f"{origin['cpu_hours']:.2f}",
        lr=f"{config['lr']:g}",
        augmentation=augmentation(config, config["input_size"]),
        settings="\n".join(f"| `{name}` | {value} |" for name, value in Config.recorded(config).as_dict().items()),
        initial=Lineage.read().describe(str(origin["initial_weights"])),
        commit=origin["git_commit"] or "not under git",
        machine="; ".join([describe(origin["hardware"]), *map(took_over, origin.get("continued", []))]),
        versions=", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
    )


def escaped(label: str) -> str:
    """The label as Markdown shows it in a table."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~$&])", r"\\\1", label)


def _balance(data: Mapping[str, Any]) -> Iterable[str]:
    """Rows of the table of the data: all classes together, the least and the most frequent one, other things."""
    images: Mapping[str, Mapping[str, int]] = data["images"]
    by_number = sorted(images, key=lambda label: sum(images[label].values()))
    yield _row("all classes", len(images), [sum(one[part] for one in images.values()) for part in PARTS])
    for what, label in (("least frequent", by_number[0]), ("most frequent", by_number[-1])):
        yield _row(f"the {what}, {escaped(label)}", 1, [images[label][part] for part in PARTS])
    if data["other"]:
        train, test = data["other"]
        yield _row("other things", 0, [train, 0, 0, test])


def _row(what: str, classes: int, counts: Iterable[int]) -> str:
    return f"| {what} | {classes:,} | {' | '.join(f'{count:,}' for count in counts)} |"
