"""The pictures of a user's own classes in memory, decoded as the service decodes them, and their split.

    data = OwnClasses(folder, side=64)      # see training.data.class_folders for what a folder must hold
    data.training, data.test                # LabelledImages
    data.split(seed)                        # indices into data.training

Near-duplicates are all in one part: a test image that training saw measures nothing. Where test images are given, the
training images that are nearly the same as one of them are left out.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.cores import available_cores
from training.data.cifar10 import LabelledImages, Split
from training.data.class_folders import ClassFolders, find_pictures, slug, title
from training.data.data_set import Others
from training.data.description import Description
from training.data.near_duplicates import groups
from training.data.photographs import OTHER, OTHER_FOLDER, decode
from training.errors import TrainingError

TEST, SELECT, CALIBRATE = 0.2, 0.1, 0.15  # shares of a class's images
LEAST = 10  # images of a class, and of `other`, of which none is nearly the same as another
TEST_SEED = 0  # the test images stay the same, whatever the seed of the split
NAMED = 3  # files that an error names


class Pictures(NamedTuple):
    """images: uint8 [N, side, side, 3]; labels: int64 [N], OTHER or a class; group: int64 [N], see near_duplicates."""

    images: Tensor
    labels: Tensor
    group: Tensor
    names: list[str]
    given: Tensor  # bool [N]: the image is in a folder of test images

    def take(self, index: Tensor) -> "Pictures":
        names = [self.names[place] for place in index.tolist()]
        return Pictures(self.images[index], self.labels[index], self.group[index], names, self.given[index])

    def labelled(self) -> LabelledImages:
        return LabelledImages(self.images, self.labels)


class _Parts(NamedTuple):
    training: Pictures
    test: Pictures
    others: tuple[Pictures, Pictures] | None
    left_out: int  # near-duplicates of test images, or of images of the classes


class OwnClasses:
    """A `training.data.data_set.DataSet`. Raises TrainingError when the folders are not as they must be."""

    def __init__(self, folder: Path, side: int) -> None:
        self.folder, self.side = folder, side
        self.files: ClassFolders = find_pictures(folder)
        name = folder.resolve().name
        self.description = Description(slug(name), title(name), self.files.classes)
        for label, paths in zip(self.files.classes, self.files.train, strict=True):
            self._check_number(label, len(paths), "")
        if self.files.other is not None and len(self.files.other) < LEAST:
            raise self._few_others()

    @property
    def training(self) -> LabelledImages:
        return self._parts.training.labelled()

    @property
    def test(self) -> LabelledImages:
        return self._parts.test.labelled()

    @property
    def others(self) -> Others | None:
        found = self._parts.others
        return None if found is None else Others(*(part.labelled() for part in found))

    def split(self, seed: int) -> Split:
        pictures = self._parts.training
        select, calibrate, train = _draw(pictures, (SELECT, CALIBRATE), seed)
        return Split(train=train, select=select, calibrate=calibrate)

    def membership(self, parts: Split) -> dict[str, list[str]]:
        pictures = self._parts
        found = {name: pictures.training.take(index).names for name, index in vars(parts).items()}
        found["test"] = pictures.test.names
        if pictures.others:
            found |= {
                f"other_{name}": part.names for name, part in zip(("train", "test"), pictures.others, strict=True)
            }
        return {name: sorted(names) for name, names in found.items()}

    def balance(self, parts: Split) -> dict[str, Any]:
        pictures = self._parts
        labels = {name: pictures.training.labels[index] for name, index in vars(parts).items()}
        labels["test"] = pictures.test.labels
        count = len(self.description.classes)
        by_part = {name: torch.bincount(one, minlength=count).tolist() for name, one in labels.items()}
        return {
            "images": {
                label: {name: counts[place] for name, counts in by_part.items()}
                for place, label in enumerate(self.description.classes)
            },
            "other": [len(part.names) for part in pictures.others] if pictures.others else [],
            "near_duplicates": self.duplicates,
            "left_out": pictures.left_out,
        }

    @property
    def warning(self) -> str | None:
        """Of pictures that are in more than one class: the network cannot learn what they show."""
        found = _in_several_classes(self._pictures)
        if not found:
            return None
        count = "1 picture is" if len(found) == 1 else f"{len(found):,} pictures are"
        return f"{count} in more than one class, for example {' and '.join(map(title, found[0]))}"

    @property
    def duplicates(self) -> int:
        """Images of the classes that are nearly the same as another one that is used."""
        return sum(len(part.names) - len(_members(part)) for part in (self._parts.training, self._parts.test))

    @cached_property
    def _parts(self) -> _Parts:
        pictures = self._pictures
        known = pictures.take((pictures.labels != OTHER).nonzero().flatten())
        drawable = known.take((~known.given).nonzero().flatten())
        self._check_groups(drawable, " without those that are nearly the same as another image")
        if self.files.test is None:
            test, train = _draw(known, (TEST,), TEST_SEED)
            training, left_out = known.take(train), 0
        else:
            test = known.given.nonzero().flatten()
            twins = torch.isin(known.group, known.group[test]) & ~known.given
            training, left_out = known.take((~twins & ~known.given).nonzero().flatten()), int(twins.sum())
            self._check_given(training, known.take(test))
        others = pictures.take((pictures.labels == OTHER).nonzero().flatten())
        twins = torch.isin(others.group, known.group)
        others = others.take((~twins).nonzero().flatten())
        return _Parts(training, known.take(test), self._halves(others), left_out + int(twins.sum()))

    @cached_property
    def _pictures(self) -> Pictures:
        test = self.files.test or [[] for _ in self.files.classes]
        wanted = [
            (path, label, given)
            for given, by_class in ((False, self.files.train), (True, test))
            for label, paths in enumerate(by_class)
            for path in paths
        ]
        wanted += [(path, OTHER, False) for path in self.files.other or ()]
        paths, labels, given = zip(*wanted, strict=True)
        images = torch.from_numpy(np.stack(self._decode(paths)))
        names = [path.relative_to(self.folder).as_posix() for path in paths]
        return Pictures(images, torch.tensor(labels), groups(images), names, torch.tensor(given))

    def _decode(self, paths: Sequence[Path]) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
        def attempt(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | str:
            try:
                return decode(path, self.side)
            except TrainingError as error:
                return str(error)
            except OSError as error:
                return f"{path}: {error.strerror}"

        with ThreadPoolExecutor(available_cores()) as pool:
            found = list(pool.map(attempt, paths))
        faults = [one for one in found if isinstance(one, str)]
        if faults:
            more = f"; {len(faults) - NAMED:,} others" if len(faults) > NAMED else ""
            raise TrainingError(f"these files cannot be used, take them away: {'; '.join(faults[:NAMED])}{more}")
        return [one for one in found if not isinstance(one, str)]

    def _check_number(self, label: str, found: int, which: str) -> None:
        if found < LEAST:
            images = "1 image" if found == 1 else f"{found} images"
            raise TrainingError(f"the class {label} in --data {self.folder} has {images}{which}: {LEAST} are needed")

    def _check_groups(self, pictures: Pictures, which: str) -> None:
        owners = [int(pictures.labels[places[0]]) for places in _members(pictures)]
        for place, label in enumerate(self.description.classes):
            self._check_number(label, owners.count(place), which)

    def _few_others(self) -> TrainingError:
        return TrainingError(
            f"{OTHER_FOLDER} in --data {self.folder} has fewer than {LEAST} different images: add some, or leave it out"
        )

    def _check_given(self, training: Pictures, test: Pictures) -> None:
        for place, label in enumerate(self.description.classes):
            if not bool((test.labels == place).any()):
                raise TrainingError(f"the class {label} in --data {self.folder} has no test images")
        self._check_groups(training, " to train on that are not nearly the same as test images")

    def _halves(self, others: Pictures) -> tuple[Pictures, Pictures] | None:
        if self.files.other is None:
            return None
        if len(_members(others)) < LEAST:
            raise self._few_others()
        report, training = _draw(others, (0.5,), TEST_SEED)
        return others.take(training), others.take(report)


def _draw(pictures: Pictures, shares: Sequence[float], seed: int) -> list[Tensor]:
    """Sorted indices for each share, then of the rest: of every class the same share, and every group in one part.

    A group belongs to the class of its first image. Every part gets at least one group of every class, and no part more
    than its share of the groups: the pictures beside a long film are not all for the first part.
    """
    random = np.random.default_rng(seed)
    members = _members(pictures)
    owner = np.array([pictures.labels[places[0]] for places in members])
    parts: list[list[int]] = [[] for _ in (*shares, "rest")]
    for label in np.unique(owner):
        waiting = {place: members[place] for place in random.permutation(np.flatnonzero(owner == label)).tolist()}
        total, count = sum(map(len, waiting.values())), len(waiting)
        for part, share in zip(parts, shares, strict=False):
            room, most = max(1, round(share * total)), max(1, round(share * count))
            chosen: list[int] = []
            for place, group in waiting.items():
                if len(group) <= room and len(chosen) < most:
                    chosen.append(place)
                    room -= len(group)
            for place in chosen or [min(waiting, key=lambda one: len(waiting[one]))]:
                part += waiting.pop(place)
        parts[-1] += [place for group in waiting.values() for place in group]
    return [torch.tensor(sorted(part), dtype=torch.int64) for part in parts]


def _in_several_classes(pictures: Pictures) -> list[list[str]]:
    """The names of each picture, by its very pixels, that is in the folders of several classes: one name a class."""
    by_pixels: dict[bytes, dict[int, str]] = {}
    for places in _members(pictures):
        if len(places) > 1:  # the same pictures are in one group
            for place in places:
                label = int(pictures.labels[place])
                if label != OTHER:
                    digest = hashlib.sha256(pictures.images[place].numpy().tobytes()).digest()
                    by_pixels.setdefault(digest, {}).setdefault(label, pictures.names[place])
    return [list(names.values())[:2] for names in by_pixels.values() if len(names) > 1]


def _members(pictures: Pictures) -> list[list[int]]:
    """The places of each group's pictures."""
    found: dict[int, list[int]] = {}
    for place, group in enumerate(pictures.group.tolist()):
        found.setdefault(group, []).append(place)
    return list(found.values())
