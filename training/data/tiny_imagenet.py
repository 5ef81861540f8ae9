"""Photographs of Tiny-ImageNet (Stanford, CS231N), in the folders that `training.data.photographs` reads.

    sort_pictures(archive, folder)      # folder/cat/n02123045_0.JPEG ..., folder/other/KIND/val_7.JPEG ...

tiny_imagenet.csv says which of its 200 kinds show one of our classes: all pictures of those kinds are taken, and of the
others, which show something else, the validation pictures. The pictures are ImageNet's: for research, not for trade.
"""

import csv
import zipfile
from pathlib import Path, PurePosixPath

from training.atomic_files import write_atomically
from training.data.archive import Archive
from training.data.photographs import OTHER_FOLDER
from training.errors import TrainingError

ARCHIVE = Archive(
    title="Tiny-ImageNet",
    name="tiny-imagenet-200.zip",
    size=248_100_043,
    md5="90528d7ca1a48142e341f4ef8d21d0de",  # also in torchvision's and in many others' code
    mirrors=("https://cs231n.stanford.edu/tiny-imagenet-200.zip",),
    variable="TINY_IMAGENET_URL",
)
ROOT = "tiny-imagenet-200"
ANNOTATIONS = f"{ROOT}/val/val_annotations.txt"
MAX_PICTURE_BYTES = 1 << 20


def folders() -> dict[str, str]:
    """For each kind (wnid), the folder that its pictures go into."""
    with Path(__file__).with_suffix(".csv").open(newline="") as file:
        return dict(csv.reader(file))


def sort_pictures(archive: Path, folder: Path) -> int:
    """Write the pictures that are not there yet, and return how many there are.

    `archive` is the published one, see `training.data.archive.fetch`. Raises TrainingError when it lacks something.
    """
    wanted = folders()
    try:
        with zipfile.ZipFile(archive) as packed:
            rows = (line.split("\t") for line in packed.read(ANNOTATIONS).decode().splitlines())
            kinds = {row[0]: row[1] for row in rows}  # of the validation pictures
            count = 0
            for member in packed.infolist():
                target = _target(PurePosixPath(member.filename), wanted, kinds)
                if target is None or member.file_size > MAX_PICTURE_BYTES:
                    continue
                count += 1
                if not (folder / target).exists():
                    (folder / target).parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(folder / target, packed.read(member))
    except (KeyError, IndexError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{archive} is not Tiny-ImageNet ({error})") from None
    return count


def _target(path: PurePosixPath, wanted: dict[str, str], kinds: dict[str, str]) -> PurePosixPath | None:
    """Where a member of the archive goes; None if it is not wanted."""
    if path.suffix != ".JPEG":
        return None
    split = path.parts[1]
    kind = path.parts[2] if split == "train" else kinds.get(path.name, "")
    into = wanted.get(kind)
    if into is None:
        return None
    if into.startswith(OTHER_FOLDER):
        return PurePosixPath(into, path.name) if split == "val" else None
    return PurePosixPath(into, path.name if split == "train" else f"{kind}_{path.name}")
