"""The model card: what a stranger must know before using the weights, with Hugging Face front matter."""

from collections.abc import Mapping
from typing import Any

from app.bundle.manifest import Manifest
from app.bundle.report import Report
from training.config import Config
from training.export.card_trust import render_trust
from training.provenance import describe

DEQUANTISED = (
    "ImageNet weights dequantised from Google's public TensorFlow model\n"
    "  `tf2_mobilenet_v2_1.0_224_ptq.tflite` (int8 weights, Apache-2.0), and changed: batch norms re-estimated,\n"
    "  filters rescaled"
)
DEQUANTISED_DIGEST = "sha256:10ddce9f1091038c619c9a7782de8fb56cd182b1651df9c4bb7ff51aa1d58399"
TORCHVISION = "torchvision:MobileNet_V2_Weights.IMAGENET1K_V2"
IMAGENET = (DEQUANTISED_DIGEST, TORCHVISION)


def _those_of(run: str, *before: str) -> str:
    """Of runs whose weights went on in those that are shipped: a licence is of what they began with themselves."""
    chain = "".join(f"which began with those of {one}, " for one in before)
    return f"those of the run {run} (docs/runs.md), {chain}which began with\n  {DEQUANTISED}"


INITIAL_WEIGHTS = {
    DEQUANTISED_DIGEST: DEQUANTISED,
    TORCHVISION: "torchvision's ImageNet weights, `MobileNet_V2_Weights.IMAGENET1K_V2` (BSD-3-Clause)",
    "sha256:dda352cb1cbf307fc9cda6259869e0fb47b817cb355fe141f12114f254b49f3c": _those_of("enlarge10"),
    "sha256:804111d6ae5ea3d94b14f4d757901ce74b5309824223865f7e6d7f698e9ad5db": _those_of("taught10", "enlarge10"),
    "sha256:6a04dccdf5279034ff0b84e42d067fd6ff7102c9a3d636b9cf405ba07563c836": _those_of("small24", "large7"),
    "sha256:2b72f5a291f580ced30788d30a22e491e989cb1eacb8451f56199f520ab9fef0": _those_of(
        "small24b", "small24", "large7"
    ),
}


def render_card(manifest: Manifest, report: Report) -> str:
    """README.md of the bundle that `manifest` and `report` describe."""
    origin = manifest.provenance
    config, sizes = origin["config"], origin["split"]
    return CARD.format(
        name=manifest.name,
        version=manifest.version,
        macs=manifest.macs / 1e6,
        parameters=manifest.parameters / 1e6,
        n=report.n,
        accuracy=report.accuracy.value,
        macro_f1=report.macro_avg.f1,
        accuracy_text=f"{_percent(report.accuracy.value)} (95 % interval {_interval(report.accuracy.ci95)})",
        classes=_class_rows(report),
        trust=render_trust(manifest, report),
        cpu_hours=origin["cpu_hours"],
        settings="\n".join(f"| `{name}` | {value} |" for name, value in Config.recorded(config).as_dict().items()),
        how=_how(origin),
        alone=_alone(origin),
        train=sizes["train"],
        select=sizes["select"],
        calibrate=sizes["calibrate"],
        initial=_initial(origin["initial_weights"]),
        teacher=_teacher(origin.get("teacher")),
        commit=origin["git_commit"] or "not under git",
        machine="; ".join([describe(origin["hardware"]), *map(_took_over, origin.get("continued", []))]),
        versions=", ".join(f"{name} {version}" for name, version in origin["versions"].items()),
        augmentation=_augmentation(config),
        **{key: config[key] for key in ("epochs", "lr", "split_seed")},
    )


def _class_rows(report: Report) -> str:
    mean = report.macro_avg
    rows = [
        (row.label, row.precision, row.recall, row.f1, _interval(row.f1_ci95), row.support) for row in report.per_class
    ]
    rows.append(("mean of the classes", mean.precision, mean.recall, mean.f1, "", mean.support))
    return "\n".join(
        f"| {label} | {_percent(precision)} | {_percent(recall)} | {_percent(f1)} | {interval} | {support:,} |"
        for label, precision, recall, f1, interval, support in rows
    )


def _augmentation(config: Mapping[str, Any]) -> str:
    done = [
        text
        for wanted, text in (
            (config["flip"], f"mirrored in every second {'view' if config.get('views') else 'epoch'}"),
            (config["shift"], f"shifted by up to {config['shift']} pixels"),
            (config["zoom"] > 1, f"half of them zoomed by a factor of up to {config['zoom']:g}"),
            (config["colour"], f"brightness, contrast and saturation changed by up to {config['colour'] * 100:.0f} %"),
            (config["cutout"], f"a square of {config['cutout']} pixels hidden"),
        )
        if wanted
    ]
    return f"Images are {', '.join(done)}." if done else "Images are shown as they are."


def _took_over(environment: dict[str, Any]) -> str:
    commit = environment["git_commit"] or "not under git"
    where = f"from step {environment['step'] + 1} of epoch {environment['epoch'] + 1} on"
    return f"{where}: {describe(environment['hardware'])}, code {commit}"


def _how(origin: Mapping[str, Any]) -> str:
    """In a cell of the table of public figures: from where, at what size, for how long, taught by how many."""
    epochs = f"32 px, {origin['config']['epochs']} epochs"
    if _from_another_run(origin):
        how = f"{epochs} after those of the weights that it began with"
    else:
        random = str(origin["initial_weights"]).startswith("random:")
        how = f"from {'scratch' if random else 'ImageNet'}, {epochs}"
    if not origin.get("teacher"):
        return how
    teachers = len(origin["teacher"].split(", "))
    return f"{how}, taught by {teachers} network{'s' if teachers > 1 else ''}"


def _alone(origin: Mapping[str, Any]) -> str:
    """What the core hours leave out."""
    others = ["its initial weights"] if _from_another_run(origin) else []
    others += ["its teachers"] if origin.get("teacher") else []
    return f" (without those of {' and '.join(others)})" if others else ""


def _from_another_run(origin: Mapping[str, Any]) -> bool:
    initial = str(origin["initial_weights"])
    return initial not in IMAGENET and not initial.startswith("random:")


def _initial(digest: Any) -> str:
    return INITIAL_WEIGHTS.get(digest, f"`{digest}`")


def _teacher(digests: str | None) -> str:
    if not digests:
        return ""
    named = [f"`{digest}`" for digest in digests.split(", ")]
    if len(named) == 1:
        return f"- It also learned from the answers of another network, whose graph has the sha256 {named[0]}.\n"
    return (
        f"- It also learned from the mean answers of {len(named)} networks with graphs of sha256 {', '.join(named)}.\n"
    )


def _percent(fraction: float) -> str:
    return f"{fraction * 100:.2f} %"


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0] * 100:.2f} to {_percent(bounds[1])}"


# The public figures and how they came about are from the repositories' own texts and logs.
CARD = """\
---
license: mit
pipeline_tag: image-classification
tags: [image-classification, mobilenet_v2, onnx, pytorch]
datasets: [cifar10]
metrics: [accuracy, f1]
model-index:
- name: {name}
  results:
  - task: {{type: image-classification}}
    dataset: {{name: CIFAR-10, type: cifar10, split: test}}
    metrics:
    - {{type: accuracy, value: {accuracy:.4f}}}
    - {{type: f1, value: {macro_f1:.4f}, name: macro F1}}
---

# {name} {version}

MobileNetV2 (width 1.0) for 32x32 images: which of the ten CIFAR-10 classes an image shows.
{macs:.1f} M multiply-adds, {parameters:.2f} M parameters. **Test accuracy {accuracy_text}.**

## Results

On the {n:,} test images. Weights, epochs and thresholds were chosen on training images held out for that; every
reading of the test images is logged. Intervals: Wilson's for accuracy, a bootstrap over the images for F1.
`report.json` has every figure, `report.txt` scikit-learn's table.

| class | precision | recall | F1 | 95 % interval of F1 | images |
| --- | --- | --- | --- | --- | --- |
{classes}

![Accuracy and loss over the epochs](accuracy_and_loss.png)
![Confusion matrix](confusion_matrix.png)

The mistakes that it was most sure of, with the calibrated probability of its answer. Some of the labels are wrong.

![The most confident mistakes](mistakes.png)

Public MobileNetV2s of this width. Their figures are of the epoch that did best on the test set itself; ours is of
the last epoch, without a look at it.

| model | test accuracy | how |
| --- | --- | --- |
| this one | {accuracy_text} | {how} |
| [HaoKang-Timmy/finetune](https://github.com/HaoKang-Timmy/finetune) | 96.16 % | from ImageNet, 224 px, 50 epochs |
| [kuangliu/pytorch-cifar](https://github.com/kuangliu/pytorch-cifar) | 94.43 % | from scratch, 32 px, 200 epochs |
| [huyvnphan/PyTorch_CIFAR10](https://github.com/huyvnphan/PyTorch_CIFAR10) | 93.91 % | from scratch, 32 px, \
100 epochs |
| [chenyaofo/pytorch-cifar-models](https://github.com/chenyaofo/pytorch-cifar-models) | 93.79 % | from scratch, 32 px, \
200 epochs |
| the model that this one replaces | about 79 % | |

## Use

From the repository's root. `model.onnx` takes RGB bytes, any ONNX runtime runs it:

```python
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("models/{name}/model.onnx")
image = np.array(Image.open("tests/data/cat.png").convert("RGB").resize((32, 32)))
logits = session.run(["logits"], {{"images": image[None]}})[0]  # uint8 [N, 32, 32, 3] in, float32 [N, 10] out
```

In PyTorch. Strides are no weights: only the network of this architecture gives right answers.

```python
from pathlib import Path

import torch
from safetensors.torch import load_file

from app.bundle import Bundle
from app.network import Preprocessed, mobilenet_v2

folder = Path("models/{name}")
manifest = Bundle.load(folder).manifest
network = mobilenet_v2(manifest.architecture)
network.load_state_dict(load_file(folder / "checkpoint.safetensors"))
model = Preprocessed(network, manifest.input.mean, manifest.input.std).eval()
with torch.inference_mode():
    logits = model(torch.from_numpy(image)[None])
print(manifest.classes[int(logits.argmax())])
```

## How far to trust it

{trust}

## Training

{epochs} epochs in {cpu_hours:.2f} core hours{alone}. AdamW, learning rate {lr:g} after a
linear rise, then a cosine to zero; weight decay on filters only. {augmentation}
The weights are a moving average over the steps. `python -m training all` with these values, and with `--init` and
`--teacher` for what [provenance](#provenance) names:

| setting | value |
| --- | --- |
{settings}

## Data

CIFAR-10's 50,000 training images, parted by class with seed {split_seed} (`split.json` has the indices): {train:,}
trained the weights, {select:,} are for choosing between runs, {calibrate:,} for calibration. Both parts together
decided whether this model is better than the one before, so the calibration images had a small say in its choice.

## Intended use and limits

- Made for teaching, demonstrations and benchmarks of serving. Decide nothing about people or safety with it.
- It answers with one of ten classes, whatever the image shows: heed `abstain`.
- It knows small images of one object in the middle. A photograph is scaled to 32x32 pixels, and often fails.
- CIFAR-10 holds wrong labels, and test images that are nearly the same as training images.

## Provenance

- Initial weights: {initial}.
{teacher}- Code: {commit}.
- Machine: {machine}; {versions}.
- The same and more for programs: `provenance` in `bundle.json`.

## Licence

MIT, as the code; the initial weights keep theirs (NOTICE in the repository). CIFAR-10: Alex Krizhevsky,
"Learning Multiple Layers of Features from Tiny Images", 2009.
"""
