"""Folders of a user's own pictures; everything that is not as it must be is one clear line."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from training.data.class_folders import find_pictures, slug, title
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
    assert found.other is not None
    assert [[path.relative_to(tmp_path).as_posix() for path in part] for part in (*found.train, found.other)] == [
        ["cat/a.png"],
        ["dog/b.png", "dog/more/a.png"],
        ["other/x/y.png"],
    ]


def test_what_file_managers_leave_behind_is_no_picture_and_no_class(tmp_path: Path) -> None:
    left = ("cat/Thumbs.db", "dog/desktop.ini", "dog/.hidden/c.png", "__MACOSX/cat/._a.png", "cat/@eaDir/a.png")
    found = find_pictures(make(tmp_path, "cat/a.png", "dog/b.png", *left))
    assert found.classes == ("cat", "dog")
    assert [[path.name for path in part] for part in found.train] == [["a.png"], ["b.png"]]


def test_a_class_may_have_the_name_of_a_part(tmp_path: Path) -> None:
    assert find_pictures(make(tmp_path, "train/1", "bus/2")).classes == ("bus", "train")


@pytest.mark.parametrize("name", ["two words", "-dash", "a.b", "犬", "a'b\"c", "x" * 100, "macro avg"])
def test_nearly_any_name_can_be_a_class(tmp_path: Path, name: str) -> None:
    assert name in find_pictures(make(tmp_path, f"{name}/1", "other class/2")).classes


def test_links_are_followed_to_files_and_from_classes_and_others_are_noticed(tmp_path: Path) -> None:
    kept = make(tmp_path / "kept", "cats/a.png", "b.png")
    data = make(tmp_path / "data", "dog/c.png")
    (data / "cat").symlink_to(kept / "cats")
    (data / "dog" / "b.png").symlink_to(kept / "b.png")
    assert [[path.name for path in part] for part in find_pictures(data).train] == [["a.png"], ["b.png", "c.png"]]
    (data / "dog" / "broken").symlink_to(tmp_path / "nowhere")
    (data / "dog" / "circle").symlink_to(data)
    assert [path.name for path in find_pictures(data).train[1]] == ["b.png", "broken", "c.png", "circle"]


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "cat/a", "dog/b")

    def refuse(folder: Path, onerror: Callable[[OSError], None]) -> Iterator[None]:
        onerror(PermissionError(13, "Permission denied", str(folder)))
        yield

    monkeypatch.setattr(os, "walk", refuse)
    with pytest.raises(TrainingError, match=r"cannot read --data .*cat \(Permission denied\): make it readable"):
        find_pictures(tmp_path)


def test_test_images_may_be_given(tmp_path: Path) -> None:
    files = ("train/cat/1", "train/dog/2", "train/other/3", "test/cat/4", "test/dog/5", "test/other/6", "other/7")
    found = find_pictures(make(tmp_path, *files))
    assert found.classes == ("cat", "dog")
    assert found.test is not None and [[path.name for path in part] for part in found.test] == [["4"], ["5"]]
    assert [path.name for path in found.other or ()] == ["7", "3", "6"]


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
        (("Train/cat/1", "Test/cat/1"), "holds Test, Train: of parts it must hold train and test"),
        (("training/cat/1", "validation/cat/1"), "of parts it must hold train and test"),
        (("train/cat/1", "test/cat/1", "notes/1"), "holds notes, test, train: .* beside them at most other"),
        (("train/cat/1", "train/dog/1"), "holds train: of parts"),
        (("cat/1", "dog/1", "Other/1"), "the folder Other in .*: name it other if it holds pictures of none"),
        (("other/1",), "holds 0 folders of classes"),
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
    ("name", "expected"),
    [
        ("Pets & Co", "pets_co"),
        ("Käse", "kase"),
        ("犬", "own_"),
        ("CIFAR-10", "cifar_10"),
        ("cifar10", "own_cifar10"),
        ("cifar10 small", "own_cifar10_small"),
    ],
)
def test_the_folder_s_name_becomes_part_of_the_model_s(name: str, expected: str) -> None:
    assert slug(name) == expected


@pytest.mark.parametrize(("name", "expected"), [("Käse", "Käse"), ("a\nb\udcff", "a_b_"), ("", "images")])
def test_its_title_can_stand_in_every_document(name: str, expected: str) -> None:
    assert title(name) == expected
