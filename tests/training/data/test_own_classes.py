"""A user's own pictures in memory, and their split."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.own_classes import OwnClasses
from training.errors import TrainingError


def picture(number: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Coarse noise: an image like no other with another number."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def fill(folder: Path, numbers: range) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        picture(number).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, one rare, and other things."""
    fill(tmp_path / "many", range(30))
    fill(tmp_path / "few", range(100, 110))
    fill(tmp_path / "other", range(200, 212))
    return tmp_path


def parts_of(data: OwnClasses, seed: int = 0) -> dict[str, list[str]]:
    return data.membership(data.split(seed))


def test_every_part_has_its_share_of_every_class(folder: Path) -> None:
    data = OwnClasses(folder, 48)
    assert data.description.classes == ("few", "many")
    assert data.training.images.shape[1:] == (48, 48, 3) and data.training.images.dtype == torch.uint8
    images = data.balance(data.split(0))["images"]
    assert images["many"] == {"train": 17, "select": 2, "calibrate": 5, "test": 6} or sum(images["many"].values()) == 30
    assert sum(images["few"].values()) == 10 and min(images["few"].values()) >= 1 and images["few"]["test"] == 2
    parts = parts_of(data)
    names = [name for part in parts.values() for name in part]
    assert len(names) == len(set(names)) == 52
    assert len(parts["other_train"]) == len(parts["other_test"]) == 6
    assert data.others is not None and data.others.report.images.shape == (6, 48, 48, 3)


def test_another_seed_draws_other_parts_but_the_same_test_images(folder: Path) -> None:
    data = OwnClasses(folder, 32)
    one, again, other = parts_of(data), parts_of(OwnClasses(folder, 32)), parts_of(data, 1)
    assert one == again
    assert one["test"] == other["test"] and one["calibrate"] != other["calibrate"]


def test_near_duplicates_are_all_in_one_part(folder: Path) -> None:
    for number in range(12):
        picture(number).save(folder / "many" / f"{number:03}_copy.jpg", quality=60)
    picture(0).save(folder / "other" / "copy.bmp")
    data = OwnClasses(folder, 64)
    for part in (parts := parts_of(data)).values():
        copies = {name.removesuffix("_copy.jpg") for name in part if name.endswith("_copy.jpg")}
        assert all(f"{name}.png" in part for name in copies)
    balance = data.balance(data.split(0))
    assert (balance["near_duplicates"], balance["left_out"]) == (12, 1)
    assert "other/copy.bmp" not in [*parts["other_train"], *parts["other_test"]]


def test_a_film_beside_other_pictures_leaves_some_for_every_part(folder: Path) -> None:
    for number in range(100):
        picture(0).save(folder / "few" / f"film{number}.png")
    films = [name.startswith("few/film") for name in parts_of(OwnClasses(folder, 32))["train"]]
    assert sum(films) == 100 and len(films) > 110
    assert all(
        sum(name.startswith("few/1") for name in part) for part in list(parts_of(OwnClasses(folder, 32)).values())[:4]
    )


def test_training_images_that_are_nearly_test_images_are_left_out(tmp_path: Path) -> None:
    for label, first in (("a", 0), ("b", 100)):
        fill(tmp_path / "train" / label, range(first, first + 22))
        fill(tmp_path / "test" / label, range(first + 20, first + 25))
    data = OwnClasses(tmp_path, 32)
    assert len(data.test.labels) == 10 and len(data.training.labels) == 40
    assert data.balance(data.split(0))["left_out"] == 4


def test_a_class_whose_pictures_are_all_copies_is_one_line(folder: Path) -> None:
    for number in range(40):
        picture(3).save(folder / "few" / f"copy{number}.png")
    for number in range(101, 110):
        (folder / "few" / f"{number}.png").unlink()
    with pytest.raises(
        TrainingError, match="class few .* without those that are nearly the same as another image: 10 are"
    ):
        _ = OwnClasses(folder, 32).training


@pytest.mark.parametrize(("count", "said"), [(0, "0 images"), (1, "1 image"), (9, "9 images")])
def test_too_few_images_are_one_line(tmp_path: Path, count: int, said: str) -> None:
    fill(tmp_path / "a", range(count))
    fill(tmp_path / "b", range(100, 112))
    with pytest.raises(TrainingError, match=f"the class a in --data .* has {said}: 10 are needed"):
        OwnClasses(tmp_path, 32)


def test_the_least_that_is_documented_is_enough_to_train_on(tmp_path: Path) -> None:
    fill(tmp_path / "a", range(10))
    fill(tmp_path / "b", range(100, 110))
    parts = OwnClasses(tmp_path, 32).split(0)
    assert (len(parts.train), len(parts.select), len(parts.calibrate)) == (12, 2, 2)


def test_pictures_in_several_classes_are_told_of(folder: Path) -> None:
    assert OwnClasses(folder, 32).warning is None
    picture(100).save(folder / "few" / "twin.png")  # in the same class
    picture(200).save(folder / "many" / "thing.png")  # in `other`, whose copy is left out
    picture(101).save(folder / "few" / "101 again.jpg", quality=60)  # nearly the same
    assert OwnClasses(folder, 32).warning is None
    for number in range(110, 114):
        picture(number).save(folder / "few" / f"{number}.png")
    picture(103).save(folder / "many" / "z.bmp")
    assert (
        OwnClasses(folder, 32).warning == "1 picture is in more than one class, for example few/103.png and many/z.bmp"
    )
    picture(102).save(folder / "many" / "zz.png")
    said = OwnClasses(folder, 32).warning
    assert said == "2 pictures are in more than one class, for example few/102.png and many/zz.png"


@pytest.mark.parametrize("left", [0, 3])
def test_too_few_other_things_are_one_line_before_any_is_decoded(folder: Path, left: int) -> None:
    for number in range(200 + left, 212):
        (folder / "other" / f"{number}.png").unlink()
    with pytest.raises(TrainingError, match="fewer than 10 different images: add some, or leave it out"):
        OwnClasses(folder, 32)


def test_other_things_that_are_copies_of_each_other_are_too_few(folder: Path) -> None:
    for number in range(203, 212):
        picture(200).save(folder / "other" / f"{number}.png")
    with pytest.raises(TrainingError, match="fewer than 10 different images: add some, or leave it out"):
        _ = OwnClasses(folder, 32).others


def test_files_that_are_no_images_are_named_on_one_line(folder: Path) -> None:
    (folder / "few" / "notes.txt").write_text("no image")
    (folder / "many" / "cut.png").write_bytes((folder / "many" / "000.png").read_bytes()[:200])
    for number in range(3):
        (folder / "other" / f"{number}.png").write_bytes(b"")
    with pytest.raises(TrainingError) as caught:
        _ = OwnClasses(folder, 32).training
    (folder / "few" / "link").symlink_to(folder / "many")
    with pytest.raises(TrainingError, match="link: Is a directory.*3 others"):
        _ = OwnClasses(folder, 32).training
    said = str(caught.value)
    assert said.startswith("these files cannot be used, take them away: ") and said.endswith("; 2 others")
    assert "notes.txt: " in said and "cut.png: the PNG is cut short or corrupt" in said and "\n" not in said
