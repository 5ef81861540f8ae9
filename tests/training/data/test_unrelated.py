import gzip
from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import FASHION_HEADER
from training.data.unrelated import FASHION_MNIST, fashion_mnist, noise, textures, unrelated_images
from training.errors import TrainingError


@pytest.mark.parametrize("make", [noise, textures])
def test_generated_images_follow_from_the_seed_and_differ_from_each_other(make: object) -> None:
    first, again, other = (make(24, seed) for seed in (1, 1, 2))  # type: ignore[operator]
    assert first.shape == (24, 32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert len(np.unique(first.reshape(24, -1), axis=0)) == 24
    assert first.reshape(24, -1).std(1).min() > 5


def test_fashion_mnist_is_padded_with_its_black(fashion: Path) -> None:
    packed = gzip.decompress((fashion / FASHION_MNIST).read_bytes())
    pixels = np.frombuffer(packed, np.uint8, offset=16).reshape(10000, 28, 28)
    images = fashion_mnist(fashion)
    assert images.shape == (10000, 32, 32, 3)
    assert np.array_equal(images[:, 2:30, 2:30, 1], pixels)
    assert images.sum() == 3 * pixels.sum(dtype=np.int64)
    assert {kind: len(made) for kind, made in unrelated_images(5, 0, fashion).items()} == {
        "noise": 5,
        "textures": 5,
        "fashion_mnist": 5,
    }


@pytest.mark.parametrize(
    "content",
    [
        b"nothing packed",
        gzip.compress(FASHION_HEADER),
        gzip.compress(b"short"),
        gzip.compress(b"short")[:10] + b"\xff" * 9,
    ],
    ids=["unpacked", "empty", "short", "corrupt"],
)
def test_a_file_that_is_not_fashion_mnist_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(TrainingError, match="cannot read"):
        fashion_mnist(tmp_path)
    (tmp_path / FASHION_MNIST).write_bytes(content)
    with pytest.raises(TrainingError, match=FASHION_MNIST):
        fashion_mnist(tmp_path)
