"""A user's own pictures: a folder for each class, and perhaps `other/` for what is none of them.

    FOLDER/CLASS/...                                    # test images are drawn
    FOLDER/train/CLASS/... and FOLDER/test/CLASS/...    # test images are given

    found = find_pictures(folder)       # paths by class; nothing is opened

Folders inside a class belong to it. Names that begin with a dot are left out.
"""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from training.data.photographs import OTHER_FOLDER
from training.errors import TrainingError

MOST_CLASSES = 1000
LONGEST_NAME = 100  # of a class, in characters
TRAIN, TEST = "train", "test"
PARTS = {TRAIN, TEST, "training", "testing", "val", "valid", "validation"}  # names that others give to parts


class ClassFolders(NamedTuple):
    """Files by class, in the order of `classes`; test: None where the test images must be drawn from `train`."""

    classes: tuple[str, ...]
    train: Sequence[Sequence[Path]]
    test: Sequence[Sequence[Path]] | None
    other: Sequence[Path]


def find_pictures(folder: Path) -> ClassFolders:
    """Raises TrainingError when the folders are not as they must be."""
    folders = _folders(folder)
    names = folders.keys() - {OTHER_FOLDER}
    if TRAIN not in names or not names <= PARTS:
        classes = _classes(folder, folders)
        return ClassFolders(tuple(classes), _files(classes), None, _below(folders.get(OTHER_FOLDER)))
    if names != {TRAIN, TEST}:
        raise TrainingError(
            f"--data {folder} holds {', '.join(sorted(names))}: of parts it must hold {TRAIN} and {TEST}"
        )
    parts = {name: _folders(folders[name]) for name in (TRAIN, TEST)}
    train, test = (_classes(folders[name], parts[name]) for name in (TRAIN, TEST))
    if train.keys() != test.keys():
        only = sorted(train.keys() ^ test.keys())[0]
        raise TrainingError(f"--data {folder}: the class {only} is in only one of {TRAIN} and {TEST}")
    others = [folders.get(OTHER_FOLDER), *(part.get(OTHER_FOLDER) for part in parts.values())]
    return ClassFolders(tuple(train), _files(train), _files(test), [path for one in others for path in _below(one)])


def slug(name: str) -> str:
    """The name in a-z, 0-9 and _, for names of models."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    found = re.sub("[^a-z0-9]+", "_", ascii_only).strip("_")[:50]
    return f"own_{found}" if found in ("", "cifar10") else found


def _folders(folder: Path) -> dict[str, Path]:
    try:
        return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    except OSError as error:
        raise TrainingError(f"cannot read --data {folder} ({error.strerror}): it must hold a folder a class") from None


def _classes(folder: Path, folders: dict[str, Path]) -> dict[str, Path]:
    """The folders of the classes by label, in the order of the labels."""
    found: dict[str, Path] = {}
    clashes: dict[str, str] = {}
    for name, path in folders.items():
        if name == OTHER_FOLDER:
            continue
        label = unicodedata.normalize("NFC", name).strip()
        if not label.isprintable() or not label or len(label) > LONGEST_NAME:
            raise TrainingError(
                f"the folder {name[:LONGEST_NAME]!r} in {folder} cannot name a class: a name has 1 to {LONGEST_NAME} "
                "characters that can be printed"
            )
        clash = clashes.setdefault(label.casefold(), name)
        if clash != name:
            raise TrainingError(f"the folders {clash!r} and {name!r} in {folder} name one class: rename one")
        found[label] = path
    if not 2 <= len(found) <= MOST_CLASSES:
        held = f"{len(found):,} folders" if len(found) != 1 else "one folder"
        raise TrainingError(f"--data {folder} holds {held} of classes: 2 to {MOST_CLASSES:,} are needed, one a class")
    return dict(sorted(found.items()))


def _files(classes: dict[str, Path]) -> list[list[Path]]:
    return [_below(folder) for folder in classes.values()]


def _below(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
