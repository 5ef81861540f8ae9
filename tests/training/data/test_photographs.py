"""Photographs by class and kind, and what is held out."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data import photographs
from training.data.photographs import OTHER, duplicates, halves, read_photographs, training_photographs
from training.errors import TrainingError


def draw(path: Path, seed: int, size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two kinds of cats, trucks of one kind, and three kinds of other things."""
    for number in range(4):
        draw(tmp_path / "cat" / f"n00000001_{number}.png", number)
        draw(tmp_path / "cat" / f"n00000002_{number}.png", 10 + number, (96, 70))
    for number in range(20):
        draw(tmp_path / "truck" / f"lorry{number}.png", 20 + number)
    for kind in ("n1_a", "n2_b", "n3_c"):
        draw(tmp_path / "other" / kind / "picture.png", 50)
    return tmp_path


def test_labels_follow_the_folders_and_pictures_are_64_pixels(folder: Path) -> None:
    found = read_photographs(folder)
    assert found.images.shape == (31, 64, 64, 3)
    assert found.images.dtype == torch.uint8
    assert found.labels.tolist() == [3] * 8 + [9] * 20 + [OTHER] * 3


def test_one_whole_kind_of_a_class_is_held_out(folder: Path) -> None:
    found = read_photographs(folder)
    held_out = {name.split("_")[0] for name in found.take(found.held_out).names if name.startswith("cat")}
    assert len(held_out) == 1
    assert found.held_out[:8].sum() == 4


def test_a_class_of_one_kind_holds_out_some_pictures(folder: Path) -> None:
    found = read_photographs(folder)
    assert 1 <= found.held_out[8:28].sum() <= 9


def test_at_least_one_kind_of_other_things_is_left_to_train_with(folder: Path) -> None:
    assert read_photographs(folder).held_out[28:].sum() == 2


def test_what_is_held_out_depends_on_names_alone(folder: Path) -> None:
    before = read_photographs(folder)
    draw(folder / "truck" / "another.png", 99)
    after = read_photographs(folder)
    kept = [name for name in after.names if name != "truck/another.png"]
    assert kept == before.names
    chosen = {name for name, held in zip(after.names, after.held_out.tolist(), strict=True) if held}
    assert chosen - {"truck/another.png"} == set(before.take(before.held_out).names)


def test_ambiguous_kinds_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "AMBIGUOUS", {"n00000001"})
    assert not [name for name in read_photographs(folder).names if "n00000001" in name]


def test_a_file_that_is_no_picture_is_named(folder: Path) -> None:
    (folder / "cat" / "notes.txt").write_text("hello")
    with pytest.raises(TrainingError, match=r"notes\.txt"):
        read_photographs(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no photographs"):
        read_photographs(tmp_path)


def test_training_needs_a_picture_of_a_class(folder: Path) -> None:
    for label in ("cat", "truck"):
        shutil.rmtree(folder / label)
    with pytest.raises(TrainingError, match="show none of the classes"):
        training_photographs(folder, 64, [])


def test_a_smaller_copy_is_a_near_duplicate_and_noise_is_not() -> None:
    smooth = torch.nn.functional.interpolate(torch.rand(5, 3, 6, 6) * 255, 64, mode="bicubic").clamp(0, 255)
    images = smooth.permute(0, 2, 3, 1).to(torch.uint8)
    copies = torch.nn.functional.interpolate(smooth[:2], 32, mode="bilinear").permute(0, 2, 3, 1).to(torch.uint8)
    assert duplicates(images, copies).tolist() == [True, True, False, False, False]


def test_halves_split_what_is_held_out_by_label_and_keep_near_duplicates_on_one_side(folder: Path) -> None:
    for number in range(40):
        draw(folder / "ship" / f"boat{number}.png", 200 + number // 2)  # every picture twice
    found = read_photographs(folder)
    calibrate, report = halves(found)
    held_out = set(found.take(found.held_out).names)
    assert set(calibrate.names) | set(report.names) <= held_out
    assert not set(calibrate.names) & set(report.names)
    assert not duplicates(report.images, calibrate.images).any()
    for part in (calibrate, report):
        assert not duplicates(part.images, found.images[~found.held_out]).any()
    cats = [sum(label == 3 for label in part.labels.tolist()) for part in (calibrate, report)]
    assert cats == [2, 2]
    again = halves(read_photographs(folder))
    assert [part.names for part in again] == [calibrate.names, report.names]


def test_a_photograph_may_have_another_side(folder: Path) -> None:
    assert read_photographs(folder, side=32).images.shape == (31, 32, 32, 3)
