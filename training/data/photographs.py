"""Photographs to train with: a folder for each class, and `other/KIND/` for everything else.

    photographs = read_photographs(folder)         # every picture through the served decoder, at 64 x 64
    seen, left_out = training_photographs(folder, 64, [cifar.training.images, cifar.test.images])
    calibrate, report = halves(photographs)        # of what it may not see

Whole kinds are held out, so that pictures are measured that are unlike those of the training. The kind is the part of
a file's name before "_", an ImageNet wnid. Of each class with two kinds or more the one with the smallest
sha256 is held out, of the other classes a fifth of the pictures, and of `other` 40 kinds. One half of the pictures that
are held out calibrates a model, the other half measures it.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from app.errors import Problem
from app.imaging.decode import EncodedImage
from training.data.cifar10 import CLASSES
from training.errors import TrainingError

SIDE = 64  # pixels: what the network sees of a photograph
OTHER_FOLDER = "other"
OTHER = -1  # the label of a picture of none of the ten classes
HELD_OUT_KINDS = 40  # of `other`
MAX_PIXELS = 25_000_000
# Kinds of Tiny-ImageNet that are nearly one of the ten: gazelle, bighorn, ox, lion, cougar, school bus, trolleybus,
# tractor, go-kart.
AMBIGUOUS = {
    "n02423022", "n02415577", "n02403003", "n02129165", "n02125311", "n04146614", "n04487081", "n04465501", "n03444034",
}  # fmt: skip
DUPLICATE = 0.95  # correlation of two 8 x 8 grey thumbnails
WNID = re.compile(r"n\d{8}(?=_)")


class Photographs(NamedTuple):
    """images: uint8 [N, 64, 64, 3] RGB; labels: int64 [N], OTHER or 0..9; held_out: bool [N]; names: N paths."""

    images: Tensor
    labels: Tensor
    held_out: Tensor
    names: list[str]

    def take(self, chosen: Tensor) -> "Photographs":
        """The photographs where `chosen` (bool [N]) is true."""
        names = [name for name, kept in zip(self.names, chosen.tolist(), strict=True) if kept]
        return Photographs(self.images[chosen], self.labels[chosen], self.held_out[chosen], names)


def read_photographs(folder: Path, side: int = SIDE) -> Photographs:
    """Decode every picture below `folder` to `side` pixels.

    Raises TrainingError when a folder or picture is not as it must be.
    """
    images, labels, held_out, names = [], [], [], []
    for label, kinds in _kinds(folder):
        hidden = _held_out_kinds(label, list(kinds))
        for kind, paths in kinds.items():
            for path in paths:
                name = path.relative_to(folder).as_posix()
                images.append(decode(path, side))
                labels.append(label)
                held_out.append(kind in hidden if len(kinds) > 1 else _digest(path.name) < 0.2)
                names.append(name)
    if not images:
        raise TrainingError(f"{folder} holds no photographs: it must have folders named {', '.join(CLASSES)} or other")
    return Photographs(torch.from_numpy(np.stack(images)), torch.tensor(labels), torch.tensor(held_out), names)


def training_photographs(folder: Path, side: int, cifar10: Sequence[Tensor]) -> tuple[Photographs, int]:
    """What training may see, and how many near-duplicates were left out of it.

    Near-duplicates of CIFAR-10's images (`cifar10`: uint8 [N, 32, 32, 3] each) and of pictures that are held out are
    left out. Raises TrainingError, as `read_photographs` does, and when none of them shows one of the classes.
    """
    photographs = read_photographs(folder, side)
    seen = photographs.take(~photographs.held_out)
    if not bool((seen.labels != OTHER).any()):
        raise TrainingError(f"the photographs in {folder} show none of the classes: training needs some")
    twins = duplicates(seen.images, torch.cat(list(cifar10)))
    twins |= duplicates(seen.images, photographs.take(photographs.held_out).images)
    return seen.take(~twins), int(twins.sum())


def halves(photographs: Photographs) -> tuple[Photographs, Photographs]:
    """The pictures that are held out, in two halves: one to calibrate on, one to report on.

    Every label's pictures alternate in the order of their names' digests. Near-duplicates of a training picture are
    left out of both halves, and near-duplicates of a calibration picture out of the second.
    """
    held_out = photographs.take(photographs.held_out)
    held_out = held_out.take(~duplicates(held_out.images, photographs.images[~photographs.held_out]))
    second = torch.zeros(len(held_out.names), dtype=torch.bool)
    for label in sorted(set(held_out.labels.tolist())):
        places = torch.nonzero(held_out.labels == label).flatten().tolist()
        second[sorted(places, key=lambda place: _digest(held_out.names[place]))[1::2]] = True
    calibrate, report = held_out.take(~second), held_out.take(second)
    return calibrate, report.take(~duplicates(report.images, calibrate.images))


def duplicates(images: Tensor, of: Tensor) -> Tensor:
    """bool [N]: which of `images` have a near-duplicate among `of`, both uint8 [N, H, W, 3] of any sizes."""
    if not len(of):
        return torch.zeros(len(images), dtype=torch.bool)
    ours, theirs = _thumbnails(images), _thumbnails(of)
    return torch.cat([(part @ theirs.T).amax(1) > DUPLICATE for part in torch.split(ours, 500)])


def _kinds(folder: Path) -> list[tuple[int, dict[str, list[Path]]]]:
    """For each label, its pictures by kind."""
    found = []
    for label, name in [*enumerate(CLASSES), (OTHER, OTHER_FOLDER)]:
        kinds: dict[str, list[Path]] = {}
        for path in sorted((folder / name).rglob("*")):
            if path.is_file():
                wnid = WNID.match(path.name)
                kind = wnid.group() if wnid else path.parent.name
                if kind not in AMBIGUOUS:
                    kinds.setdefault(kind, []).append(path)
        if kinds:
            found.append((label, kinds))
    return found


def _held_out_kinds(label: int, kinds: list[str]) -> set[str]:
    count = HELD_OUT_KINDS if label == OTHER else 1
    return set(sorted(kinds, key=_digest)[: min(count, len(kinds) - 1)])


def _digest(name: str) -> float:
    """A number from 0 to 1 that depends on nothing but the name."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


def decode(path: Path, side: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """uint8 [side, side, 3], as the service decodes it. Raises TrainingError for what it would refuse, and OSError."""
    try:
        (pixels,) = EncodedImage.identify(path.read_bytes(), MAX_PIXELS).thumbnails(1, side, side)
    except Problem as error:
        raise TrainingError(f"{path}: {error}") from None
    return np.asarray(pixels)


def _thumbnails(images: Tensor) -> Tensor:
    """float32 [N, 64]: 8 x 8 grey thumbnails, centred and scaled to length 1."""
    parts = []
    for part in torch.split(images, 1000):
        grey = part.float().mean(3)[:, None]
        flat = F.adaptive_avg_pool2d(grey, 8).flatten(1)
        parts.append(F.normalize(flat - flat.mean(1, keepdim=True), dim=1))
    return torch.cat(parts)
