"""The model card: what a stranger must know before using the weights, with Hugging Face front matter."""

from typing import Any

from app.bundle import Manifest, Report

# Public MobileNetV2 (width 1.0) results on CIFAR-10: where, test accuracy in per cent, how.
PUBLIC = (
    (
        "[HaoKang-Timmy/finetune](https://github.com/HaoKang-Timmy/finetune)",
        96.16,
        "ImageNet weights, 224 px, 50 epochs",
    ),
    ("[kuangliu/pytorch-cifar](https://github.com/kuangliu/pytorch-cifar)", 94.43, "from scratch, 32 px, 200 epochs"),
    (
        "[huyvnphan/PyTorch_CIFAR10](https://github.com/huyvnphan/PyTorch_CIFAR10)",
        93.91,
        "from scratch, 32 px, 100 epochs",
    ),
    (
        "[chenyaofo/pytorch-cifar-models](https://github.com/chenyaofo/pytorch-cifar-models)",
        93.79,
        "from scratch, 32 px, 200 epochs",
    ),
)
INITIAL_WEIGHTS = {
    "sha256:10ddce9f1091038c619c9a7782de8fb56cd182b1651df9c4bb7ff51aa1d58399": (
        "ImageNet weights dequantised from Google's public TensorFlow model `tf2_mobilenet_v2_1.0_224_ptq.tflite` "
        "(int8 weights, Apache-2.0), changed: batch norms re-estimated, filters rescaled"
    ),
    "torchvision:MobileNet_V2_Weights.IMAGENET1K_V2": "torchvision's `MobileNet_V2_Weights.IMAGENET1K_V2` (BSD-3-Clause)",
}


def render_card(manifest: Manifest, report: Report) -> str:
    """README.md of the bundle that `manifest` and `report` describe."""
    name, value = manifest.name, report.accuracy.value
    config, machine = manifest.provenance["config"], manifest.provenance["hardware"]
    accuracy = f"{value:.2%} (95 % interval {_interval(report.accuracy.ci95)})"
    sections = [
        _front_matter(name, report),
        f"# {name} {manifest.version}",
        f"MobileNetV2 (width 1.0) for 32x32 images: which of the ten CIFAR-10 classes an image shows. "
        f"{manifest.macs / 1e6:.1f} M multiply-adds, {manifest.parameters / 1e6:.2f} M parameters. "
        f"**Test accuracy {accuracy}.**",
        "## Results",
        f"On the {report.n:,} test images, which nothing was chosen on. Intervals: Wilson for accuracy, bootstrap over the "
        f"images for F1. `report.json` has all figures, `report.txt` scikit-learn's table.",
        _class_table(report),
        "![Accuracy and loss](accuracy_and_loss.png)\n![Confusion matrix](confusion_matrix.png)\n"
        "![Reliability](reliability.png)",
        "Other MobileNetV2s of this width. Their figures are of the epoch that was best on the test set itself; "
        "ours is not.",
        _comparison(accuracy, config),
        "## Use",
        "`model.onnx` takes RGB bytes, scaling and normalisation are inside; any ONNX runtime will do:",
        _code(_ONNX, name),
        "In PyTorch, from the repository's root. Strides are no weights, so the network must be built for this architecture:",
        _code(_TORCH, name),
        "Probabilities are softmax(logits), " + _calibration(manifest),
        "## Training",
        _training(manifest.provenance),
        "| setting | value |\n| --- | --- |\n" + "\n".join(f"| {key} | {config[key]} |" for key in config),
        "## Data",
        f"CIFAR-10. Of its 50,000 training images {_sizes(manifest.provenance)} (stratified by class, seed "
        f"{config['split_seed']}, indices in `split.json`). The weights saw the first part only; the second chose between "
        f"runs. The test images were read when all was fixed; every reading is logged in the repository.",
        "## Limits",
        "- It always answers with one of ten classes, whatever the image shows.\n"
        "- It knows CIFAR-10's centred, small objects; a photograph is scaled to 32x32 pixels first and will often fail.\n"
        "- CIFAR-10 has known label errors, and test images with near-duplicates among the training images.\n"
        "- Made for teaching, demonstrations and benchmarks of serving; for no decision about people or safety.",
        "## Provenance",
        f"- Initial weights: {_initial(manifest.provenance['initial_weights'])}.\n"
        f"- Code: {manifest.provenance['git_commit'] or 'no git commit'}.\n"
        f"- Machine: {machine['cpu']}, {machine['threads']} threads; {_versions(manifest.provenance)}.\n"
        f"- All of it, machine-readable: `provenance` in `bundle.json`.",
        "## Licence",
        "MIT, as the code; the initial weights keep theirs (NOTICE in the repository). CIFAR-10: Alex Krizhevsky, "
        '"Learning Multiple Layers of Features from Tiny Images", 2009.',
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(name: str, report: Report) -> str:
    return f"""---
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
    - {{type: accuracy, value: {report.accuracy.value:.4f}}}
    - {{type: f1, value: {report.macro_avg.f1:.4f}, name: macro F1}}
---"""


def _class_table(report: Report) -> str:
    rows = ["| class | precision | recall | F1 | 95 % of F1 | images |", "| --- | --- | --- | --- | --- | --- |"]
    rows += [
        f"| {row.label} | {row.precision:.2%} | {row.recall:.2%} | {row.f1:.2%} | {_interval(row.f1_ci95)} | {row.support} |"
        for row in report.per_class
    ]
    mean = report.macro_avg
    rows.append(
        f"| mean of the classes | {mean.precision:.2%} | {mean.recall:.2%} | {mean.f1:.2%} | | {mean.support} |"
    )
    return "\n".join(rows)


def _comparison(accuracy: str, config: dict[str, Any]) -> str:
    rows = ["| model | test accuracy | how |", "| --- | --- | --- |"]
    rows.append(f"| this one | {accuracy} | 32 px, {config['epochs']} epochs, chosen without the test set |")
    rows += [f"| {where} | {value} % | {how} |" for where, value, how in PUBLIC]
    rows.append("| the model that this one replaces | about 79 % | |")
    return "\n".join(rows)


def _training(provenance: dict[str, Any]) -> str:
    config = provenance["config"]
    return (
        f"{config['epochs']} epochs in {provenance['cpu_hours']:.2f} core hours. AdamW, learning rate {config['lr']:g} after a "
        f"linear rise, then a cosine to zero; weight decay on filters only; mirrored in every second epoch, shifted by "
        f"up to {config['shift']} pixels, a square of {config['cutout']} pixels hidden; the shipped weights are a moving "
        f"average. `python -m training all` with these values does it again:"
    )


def _sizes(provenance: dict[str, Any]) -> str:
    size = provenance["split"]
    return f"{size['train']:,} trained, {size['select']:,} selected, {size['calibrate']:,} are kept for calibration"


def _calibration(manifest: Manifest) -> str:
    if manifest.calibration is None:
        return "not calibrated."
    return f"of logits divided by the temperature {manifest.calibration.temperature:.3f}."


def _initial(digest: str) -> str:
    return INITIAL_WEIGHTS.get(digest, f"`{digest}`")


def _versions(provenance: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.2%} to {bounds[1]:.2%}"


def _code(template: str, name: str) -> str:
    return f"```python\n{template.replace('FOLDER', f'models/{name}')}```"


_ONNX = """\
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
image = np.asarray(Image.open("tests/data/cat.png").convert("RGB").resize((32, 32)))
logits = session.run(["logits"], {"images": image[None]})[0]  # uint8 [N, 32, 32, 3] in, float32 [N, 10] out
"""
_TORCH = """\
from pathlib import Path

import torch
from safetensors.torch import load_file

from app.bundle import Bundle
from app.network import Preprocessed, mobilenet_v2

folder = Path("FOLDER")
manifest = Bundle.load(folder).manifest
network = mobilenet_v2(manifest.architecture)
network.load_state_dict(load_file(folder / "checkpoint.safetensors"))
model = Preprocessed(network, manifest.input.mean, manifest.input.std).eval()
with torch.inference_mode():
    logits = model(torch.from_numpy(image.copy())[None])
print(manifest.classes[int(logits.argmax())])
"""
