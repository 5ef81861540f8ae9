"""Measure bundles on photographs of kinds that training never saw, with 32 and 64 pixels and with three views.

python -m tests.benchmarks.training.photographs --photographs FOLDER [BUNDLE ...]

FOLDER has a folder a class and `other/KIND/` (training.data.photographs says which are held out). All that is held out
is measured, with the half that calibrated the bundle. Three views are the whole picture, twice since it is square, and
its central 70 %; their logits are averaged as with `VIEWS=3`.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from app.bundle.names import CHECKPOINT, GRAPH
from app.bundle.reader import Bundle
from app.network.mobilenet import Preprocessed, mobilenet_v2
from training.data.cifar10 import CLASSES
from training.data.photographs import OTHER, SIDE, Photographs, duplicates, read_photographs
from training.evaluate.abstention import entropies
from training.evaluate.network_outputs import Answering, FloatNetwork, Graph

ROOT = Path(__file__).parents[3]
BUNDLES = [ROOT / "models/mobilenet_v2_cifar10", ROOT / "models/mobilenet_v2_cifar10_small"]
CENTRE = 0.7


def network_of(folder: Path) -> Answering:
    bundle = Bundle.load(folder)
    if bundle.manifest.quantisation:
        return Graph(bundle.read(GRAPH))
    network = mobilenet_v2(bundle.manifest.architecture)
    network.load_state_dict(load(bundle.read(CHECKPOINT)))
    return FloatNetwork(Preprocessed(network, bundle.manifest.input.mean, bundle.manifest.input.std).eval())


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 [N, side, side, 3], as good as the decoder's own resizing."""
    pixels = F.interpolate(images.permute(0, 3, 1, 2).float(), side, mode="bilinear", antialias=True)
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def central(images: Tensor) -> Tensor:
    """The central 70 % of each side, at the size of the image."""
    edge = round(images.shape[1] * (1 - CENTRE) / 2)
    return resized(images[:, edge:-edge, edge:-edge], images.shape[1])


def describe(name: str, how: str, photographs: Photographs, logits: Tensor, temperature: float) -> str:
    """A row of the table."""
    labels = photographs.labels
    known = labels != OTHER
    right = logits.argmax(1) == labels
    shares = {CLASSES[one]: right[labels == one].float().mean().item() for one in sorted(set(labels[known].tolist()))}
    worst = min(shares, key=lambda label: shares[label])
    areas = [
        roc_auc_score((~known).numpy(), scores)
        for scores in (entropies(logits.numpy(), temperature), 1 - logits.softmax(1).amax(1).numpy())
    ]
    return (
        f"| {name} | {how} | {right[known].float().mean():.1%} | {np.mean(list(shares.values())):.1%} | "
        f"{worst}, {shares[worst]:.1%} | {areas[0]:.3f} | {areas[1]:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*", default=BUNDLES)
    parser.add_argument("--photographs", type=Path, required=True)
    options = parser.parse_args()
    every = read_photographs(options.photographs)
    held_out = every.take(every.held_out)
    held_out = held_out.take(~duplicates(held_out.images, every.take(~every.held_out).images))
    known = held_out.labels != OTHER
    classes = len(set(held_out.labels[known].tolist()))
    print(f"{int(known.sum())} photographs of {classes} classes, {int((~known).sum())} others")
    print("| model | input | accuracy | mean of the classes | worst class | area by ood_score | by probability |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for folder in options.bundles:
        model, fitted = network_of(folder), Bundle.load(folder).manifest.photographs
        assert fitted is not None and fitted.abstention.temperature is not None
        whole = model.logits(held_out.images)
        rows = {
            "32 px": model.logits(resized(held_out.images, 32)),
            f"{SIDE} px": whole,
            f"{SIDE} px, three views": (2 * whole + model.logits(central(held_out.images))) / 3,
        }
        for how, logits in rows.items():
            print(describe(folder.name, how, held_out, logits, fitted.abstention.temperature), flush=True)


if __name__ == "__main__":
    main()
