"""Copies of a picture are found; pictures that are only alike are not."""

import io

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from tests.training.data.test_own_classes import picture
from training.data.near_duplicates import _fewer, groups


def stacked(*pictures: Image.Image) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(one.resize((64, 64))) for one in pictures]))


def as_jpeg(one: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    one.save(file, "JPEG", quality=quality)
    return Image.open(file)


def test_copies_in_another_size_or_quality_are_in_one_group() -> None:
    first, other = picture(1), picture(2)
    found = groups(stacked(first, other, as_jpeg(first, 50), first.resize((48, 48)), as_jpeg(other, 90))).tolist()
    assert found == [found[0], found[1], found[0], found[0], found[1]] and found[0] != found[1]


def test_images_without_a_structure_are_the_same_only_in_the_same_colour() -> None:
    found = groups(stacked(*(Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "red"))))
    assert found[0] == found[2] != found[1]


def test_different_digits_are_not_taken_for_copies() -> None:
    digits = torch.from_numpy(load_digits().images[:400] * 15).to(torch.uint8)
    assert len(groups(digits[..., None].expand(-1, -1, -1, 3)).unique()) == 400


def test_blocks_of_images_are_compared_with_each_other(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    images = stacked(*(picture(number % 5) for number in range(12)))
    expected = groups(images)
    monkeypatch.setattr("training.data.near_duplicates.BLOCK", 3)
    assert groups(images).tolist() == expected.tolist()
    assert len(expected.unique()) == 5


def test_a_film_needs_no_more_memory_than_other_pictures() -> None:
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    links = _fewer(torch.cat([pairs, pairs + 5]))
    assert sorted(map(tuple, links.tolist())) == [(0, 0), (0, 1), (0, 2), (5, 5), (5, 6), (5, 7)]
