import zipfile
from pathlib import Path

import pytest

from training.data.cifar10 import CLASSES
from training.data.photographs import AMBIGUOUS
from training.data.tiny_imagenet import ANNOTATIONS, ROOT, folders, sort_pictures
from training.errors import TrainingError

CAT, FISH = "n02123045", "n01443537"


def test_the_list_names_classes_and_other_things() -> None:
    found = folders()
    classes = {folder for folder in found.values() if "/" not in folder}
    assert classes == set(CLASSES) - {"airplane", "deer", "horse"}
    assert all(folder.startswith(f"other/{wnid}_") for wnid, folder in found.items() if "/" in folder)
    assert len(found) == 198
    assert {wnid for wnid, folder in found.items() if "/" in folder} >= AMBIGUOUS


def packed(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


MEMBERS = {
    ANNOTATIONS: f"val_0.JPEG\t{CAT}\t0\t0\t9\t9\nval_1.JPEG\t{FISH}\t0\t0\t9\t9\n".encode(),
    f"{ROOT}/train/{CAT}/images/{CAT}_0.JPEG": b"cat",
    f"{ROOT}/train/{CAT}/{CAT}_boxes.txt": b"boxes",
    f"{ROOT}/train/{FISH}/images/{FISH}_0.JPEG": b"a fish to train with",
    f"{ROOT}/val/images/val_0.JPEG": b"validation cat",
    f"{ROOT}/val/images/val_1.JPEG": b"fish",
    f"{ROOT}/test/images/test_0.JPEG": b"unknown",
    f"{ROOT}/train/{CAT}/images/../../../../../outside.JPEG": b"outside",
}


def test_pictures_are_sorted_into_folders_by_class(tmp_path: Path) -> None:
    archive = packed(tmp_path / "archive.zip", **MEMBERS)
    for _ in range(2):  # the second time they are there
        assert sort_pictures(archive, tmp_path / "photographs") == 4
    found = {
        path.relative_to(tmp_path / "photographs").as_posix(): path.read_bytes()
        for path in (tmp_path / "photographs").rglob("*.JPEG")
    }
    assert found == {
        f"cat/{CAT}_0.JPEG": b"cat",
        f"cat/{CAT}_val_0.JPEG": b"validation cat",
        f"other/{FISH}_goldfish/val_1.JPEG": b"fish",
        "cat/outside.JPEG": b"outside",  # no member leaves the folder
    }


def test_another_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is not Tiny-ImageNet"):
        sort_pictures(packed(tmp_path / "other.zip", readme=b"text"), tmp_path)
    (tmp_path / "no.zip").write_bytes(b"PK")
    with pytest.raises(TrainingError, match="is not Tiny-ImageNet"):
        sort_pictures(tmp_path / "no.zip", tmp_path)
