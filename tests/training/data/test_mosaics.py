"""Images in WebP mosaics."""

from pathlib import Path

import pytest
import torch

from training.data import mosaics
from training.data.mosaics import read_mosaics, write_mosaics
from training.errors import TrainingError


def noise(count: int, side: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [1, 5, 6, 7, 30])
def test_lossless_mosaics_give_the_same_pixels_again(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mosaics, "COLUMNS", 3)
    monkeypatch.setattr(mosaics, "ROWS", 2)
    files = write_mosaics(tmp_path, "noise", noise(count))
    assert len(files) == -(-count // 6)
    assert torch.equal(read_mosaics(tmp_path, "noise", count, 8), noise(count))


def test_lossy_mosaics_keep_shape_and_colour(tmp_path: Path) -> None:
    grey = torch.full((4, 16, 16, 3), 90, dtype=torch.uint8)
    write_mosaics(tmp_path, "grey", grey, lossless=False, quality=85)
    assert (read_mosaics(tmp_path, "grey", 4, 16).int() - 90).abs().max() <= 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"noise_00\.webp is missing or damaged"):
        read_mosaics(tmp_path, "noise", 3, 8)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    (file,) = write_mosaics(tmp_path, "noise", noise(5))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(TrainingError, match="damaged"):
        read_mosaics(tmp_path, "noise", 5, 8)


def test_mosaics_of_another_size_are_refused(tmp_path: Path) -> None:
    write_mosaics(tmp_path, "noise", noise(5))
    with pytest.raises(TrainingError):
        read_mosaics(tmp_path, "noise", 5, 32)
