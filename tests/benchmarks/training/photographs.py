"""Measure bundles on photographs of kinds that training never saw, at 32 and at 64 pixels.

python -m tests.benchmarks.training.photographs --photographs FOLDER [BUNDLE ...]

FOLDER has a folder a class and `other/KIND/` (training.data.photographs says which are held out). The service scales
every image to 32 pixels. The columns at 64 show what the same weights answer if they are given 64 real pixels, which
are enlarged to the size that their layers work on.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from app.bundle.names import CHECKPOINT
from app.bundle.reader import Bundle
from app.network.mobilenet import Preprocessed, mobilenet_v2
from training.data.cifar10 import CLASSES
from training.data.photographs import OTHER, Photographs, duplicates, read_photographs
from training.evaluate.network_outputs import predict_logits

ROOT = Path(__file__).parents[3]
BUNDLES = [ROOT / "models/mobilenet_v2_cifar10", ROOT / "models/mobilenet_v2_cifar10_small"]


def for_any_size(folder: Path) -> Preprocessed:
    """The bundle's network, which enlarges an image of any size to the size that its layers work on."""
    bundle = Bundle.load(folder)
    manifest = bundle.manifest
    network = mobilenet_v2(manifest.architecture)
    network.load_state_dict(load(bundle.read(CHECKPOINT)))
    if manifest.architecture.enlarge > 1:
        side = manifest.input.height * manifest.architecture.enlarge
        network.features[0].enlarge = nn.Upsample(size=(side, side), mode="bilinear")
    return Preprocessed(network, manifest.input.mean, manifest.input.std).eval()


def reduced(images: Tensor) -> Tensor:
    """uint8 [N, 32, 32, 3]: the mean of each 2 x 2 pixels, as good as the decoder's own reduction."""
    return F.avg_pool2d(images.permute(0, 3, 1, 2).float(), 2).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def describe(name: str, side: int, photographs: Photographs, logits: Tensor) -> str:
    """A row of the table."""
    labels = photographs.labels
    known = labels != OTHER
    right = logits.argmax(1) == labels
    shares = {CLASSES[one]: right[labels == one].float().mean().item() for one in labels[known].unique().tolist()}
    worst = min(shares, key=lambda label: shares[label])
    area = roc_auc_score(known.numpy(), logits.softmax(1).amax(1).numpy())
    return (
        f"| {name} | {side} px | {right[known].float().mean():.1%} | {sum(shares.values()) / len(shares):.1%} | "
        f"{worst}, {shares[worst]:.1%} | {area:.3f} |"
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
    classes = len(held_out.labels[known].unique())
    print(f"{int(known.sum())} photographs of {classes} classes, {int((~known).sum())} others")
    print("| model | input | accuracy | mean of the classes | worst class | known against other, AUROC |")
    print("| --- | --- | --- | --- | --- | --- |")
    for folder in options.bundles:
        model = for_any_size(folder)
        for side, images in ((32, reduced(held_out.images)), (64, held_out.images)):
            print(describe(folder.name, side, held_out, predict_logits(model, images)), flush=True)


if __name__ == "__main__":
    main()
