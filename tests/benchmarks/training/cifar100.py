"""Measure how well scores tell CIFAR-10's images from CIFAR-100's test images. For reports only: choose nothing by it.

python -m tests.benchmarks.training.cifar100 --cifar100 FOLDER --data-dir data [BUNDLE ...]

FOLDER has a picture a class: its images of 32 x 32 pixels, in rows. They are compared with the selection split.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from app.bundle.reader import Bundle
from tests.benchmarks.training.photographs import BUNDLES, network_of
from training.data.cifar10 import load
from training.evaluate.abstention import entropies

SIDE = 32


def images(folder: Path) -> torch.Tensor:
    """uint8 [N, 32, 32, 3]"""
    found = []
    for path in sorted(folder.glob("*.webp")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        rows, columns = pixels.shape[0] // SIDE, pixels.shape[1] // SIDE
        tiles = pixels.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
        found.append(tiles)
    return torch.from_numpy(np.concatenate(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*", default=BUNDLES)
    parser.add_argument("--cifar100", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    options = parser.parse_args()
    others = images(options.cifar100)
    print(
        f"{len(others):,} images of CIFAR-100\n| model | by ood_score | by largest probability |\n| --- | --- | --- |"
    )
    for folder in options.bundles:
        bundle = Bundle.load(folder)
        selection = json.loads(bundle.read("split.json"))["select"]
        known = load(options.data_dir, train=True, download=False).images[selection]
        logits = [network_of(folder).logits(part) for part in (known, others)]
        truth = np.repeat([0, 1], [len(known), len(others)])
        areas = [
            roc_auc_score(truth, np.concatenate(scores))
            for scores in (
                [entropies(one.numpy(), bundle.manifest.abstention.temperature) for one in logits],
                [1 - one.softmax(1).amax(1).numpy() for one in logits],
            )
        ]
        print(f"| {folder.name} | {areas[0]:.4f} | {areas[1]:.4f} |", flush=True)


if __name__ == "__main__":
    main()
