"""A user's own pictures: a folder for each class, and perhaps `other/` for what is none of them.

    FOLDER/CLASS/...                                    # test images are drawn
    FOLDER/train/CLASS/... and FOLDER/test/CLASS/...    # test images are given

    found = find_pictures(folder)       # paths by class; nothing is opened

Folders inside a class belong to it. Names that begin with a dot are left out, and what file managers leave behind.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from training.data.photographs import OTHER_FOLDER
from training.errors import TrainingError

MOST_CLASSES = 1000
LONGEST_NAME = 100  # of a class, in characters
NAMED = 5  # folders that an error names
TRAIN, TEST = "train", "test"
PARTS = {TRAIN, TEST, "training", "testing", "val", "valid", "validation"}  # names that others give to parts
LEFT_BEHIND = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}  # by file managers, in lower case


class ClassFolders(NamedTuple):
    """Files by class, in the order of `classes`.

    test: None where the test images must be drawn from `train`. other: None where there is no such folder.
    """

    classes: tuple[str, ...]
    train: Sequence[Sequence[Path]]
    test: Sequence[Sequence[Path]] | None
    other: Sequence[Path] | None


def find_pictures(folder: Path) -> ClassFolders:
    """Raises TrainingError when the folders are not as they must be."""
    folders = _folders(folder)
    names = folders.keys() - {OTHER_FOLDER}
    parted = {name for name in names if name.lower() in PARTS}
    if len(parted) < min(2, len(names)) or not names:
        classes = _classes(folder, folders)
        return ClassFolders(tuple(classes), _files(classes), None, _others(folders))
    if names != {TRAIN, TEST}:
        raise TrainingError(
            f"--data {folder} holds {', '.join(sorted(names)[:NAMED])}: of parts it must hold {TRAIN} and {TEST}, and "
            f"beside them at most {OTHER_FOLDER}"
        )
    parts = {name: _folders(folders[name]) for name in (TRAIN, TEST)}
    train, test = (_classes(folders[name], parts[name]) for name in (TRAIN, TEST))
    if train.keys() != test.keys():
        only = sorted(train.keys() ^ test.keys())[0]
        raise TrainingError(f"--data {folder}: the class {only} is in only one of {TRAIN} and {TEST}")
    return ClassFolders(tuple(train), _files(train), _files(test), _others(folders, *parts.values()))


def slug(name: str) -> str:
    """The name in a-z, 0-9 and _, for names of models; not one of CIFAR-10's."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    found = re.sub("[^a-z0-9]+", "_", ascii_only).strip("_")[:50]
    return f"own_{found}" if not found or found.startswith("cifar10") else found


def title(name: str) -> str:
    """The name for people: in any language, but without what no document can carry."""
    return "".join(one if one.isprintable() else "_" for one in unicodedata.normalize("NFC", name)) or "images"


def _folders(folder: Path) -> dict[str, Path]:
    try:
        return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not _is_hidden(path.name)}
    except OSError as error:
        raise TrainingError(f"cannot read --data {folder} ({error.strerror}): it must hold a folder a class") from None


def _classes(folder: Path, folders: dict[str, Path]) -> dict[str, Path]:
    """The folders of the classes by label, in the order of the labels."""
    found: dict[str, Path] = {}
    clashes: dict[str, str] = {}
    for name, path in folders.items():
        if name == OTHER_FOLDER:
            continue
        if name.casefold() == OTHER_FOLDER:
            raise TrainingError(
                f"the folder {name} in {folder}: name it {OTHER_FOLDER} if it holds pictures of none of the classes, "
                "and in other words if it is a class"
            )
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


def _others(*parts: dict[str, Path]) -> list[Path] | None:
    """What is in the folders of other things; None if there is none."""
    found = [_below(folders[OTHER_FOLDER]) for folders in parts if OTHER_FOLDER in folders]
    return [path for part in found for path in part] if found else None


def _below(folder: Path) -> list[Path]:
    """The files in a folder and in the folders inside it; links that lead to no file, too, so that they are noticed."""
    found = []
    try:
        for place, folders, files in os.walk(folder, onerror=_raise):
            links = [name for name in folders if (Path(place) / name).is_symlink()]
            folders[:] = [name for name in folders if not _is_hidden(name)]
            found += [Path(place) / name for name in [*files, *links] if not _is_hidden(name)]
    except OSError as error:
        raise TrainingError(f"cannot read --data {error.filename} ({error.strerror}): make it readable") from None
    return sorted(
        path for path in found if path.is_file() or (path.is_symlink() and (path.is_dir() or not path.exists()))
    )


def _raise(error: OSError) -> None:
    raise error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFT_BEHIND
