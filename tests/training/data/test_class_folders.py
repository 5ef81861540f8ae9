"""Folders of a user's own pictures; everything that is not as it must be is one clear line."""

from pathlib import Path

import pytest

from training.data.class_folders import find_pictures, slug
from training.errors import TrainingError


def make(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_each_folder_is_a_class_with_all_that_is_below_it(tmp_path: Path) -> None:
    files = ("dog/b.png", "dog/more/a.png", "cat/a.png", "cat/.DS_Store", ".git/x", "other/x/y.png", "README.md")
    found = find_pictures(make(tmp_path, *files))
    assert found.classes == ("cat", "dog") and found.test is None
    assert [[path.relative_to(tmp_path).as_posix() for path in part] for part in (*found.train, found.other)] == [
        ["cat/a.png"],
        ["dog/b.png", "dog/more/a.png"],
        ["other/x/y.png"],
    ]


def test_test_images_may_be_given(tmp_path: Path) -> None:
    files = ("train/cat/1", "train/dog/2", "train/other/3", "test/cat/4", "test/dog/5", "test/other/6", "other/7")
    found = find_pictures(make(tmp_path, *files))
    assert found.classes == ("cat", "dog")
    assert found.test is not None and [[path.name for path in part] for part in found.test] == [["4"], ["5"]]
    assert [path.name for path in found.other] == ["7", "3", "6"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "holds 0 folders of classes: 2 to 1,000 are needed"),
        (("a.png",), "holds 0 folders of classes"),
        (("cat/1", "other/2"), "holds one folder of classes"),
        (tuple(f"{number}/1" for number in range(1001)), "holds 1,001 folders of classes: 2 to 1,000"),
        (("Cat/1", "cat/1"), "the folders 'Cat' and 'cat' in .* name one class"),
        (("caf\u00e9/1", "cafe\u0301/1"), "name one class: rename one"),
        (("a\nb/1", "c/1"), r"the folder 'a\\nb' in .* cannot name a class"),
        (("x" * 101 + "/1", "c/1"), "cannot name a class: a name has 1 to 100 characters"),
        (("train/cat/1", "val/cat/1"), "holds train, val: of parts it must hold train and test"),
        (("train/cat/1", "train/dog/1", "test/cat/1", "test/cow/1"), "the class cow is in only one of train and test"),
    ],
)
def test_folders_that_are_not_as_they_must_be_are_one_line(tmp_path: Path, files: tuple[str, ...], said: str) -> None:
    with pytest.raises(TrainingError, match=said) as caught:
        find_pictures(make(tmp_path, *files))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"cannot read --data .*none \(No such file or directory\)"):
        find_pictures(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "expected"), [("Pets & Co", "pets_co"), ("Käse", "kase"), ("犬", "own_"), ("CIFAR-10", "cifar_10")]
)
def test_the_folder_s_name_becomes_part_of_the_model_s(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_no_folder_gets_the_name_of_cifar10() -> None:
    assert slug("cifar10") == "own_cifar10"
