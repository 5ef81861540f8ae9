import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from training.data.corruptions import CORRUPTIONS, SEVERITIES


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Eight cuts of two photos, uint8 [8, 32, 32, 3]."""
    china, flower = load_sample_images().images
    cuts = [photo[y : y + 256 : 8, x : x + 256 : 8] for photo in (china, flower) for y in (0, 150) for x in (40, 300)]
    return np.stack(cuts)


def corrupt(name: str, images: np.ndarray, severity: int, seed: int = 0) -> np.ndarray:
    return CORRUPTIONS[name](images, severity, np.random.default_rng(seed))


def test_there_are_fifteen_corruptions_in_five_severities() -> None:
    assert len(CORRUPTIONS) == 15 and len(SEVERITIES) == 5


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_grows_with_severity_and_leaves_its_input(name: str, pictures: np.ndarray) -> None:
    before = pictures.copy()
    corrupted = [corrupt(name, pictures, severity) for severity in SEVERITIES]
    assert (pictures == before).all()
    assert {(one.shape, one.dtype) for one in corrupted} == {(pictures.shape, pictures.dtype)}
    distances = [float(np.abs(one.astype(int) - pictures).mean()) for one in corrupted]
    assert distances[0] > 0.3 and distances == sorted(set(distances))
    assert distances[-1] < 80  # corrupted, not destroyed


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_decides_a_corruption(name: str, pictures: np.ndarray) -> None:
    assert (corrupt(name, pictures, 3) == corrupt(name, pictures, 3)).all()
    without_chance = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    assert (corrupt(name, pictures, 3) == corrupt(name, pictures, 3, seed=1)).all() == (name in without_chance)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_black_white_and_empty_batches_can_be_corrupted(name: str) -> None:
    for value in (0, 255):
        assert corrupt(name, np.full((2, 32, 32, 3), value, np.uint8), 5).shape == (2, 32, 32, 3)
    assert corrupt(name, np.empty((0, 32, 32, 3), np.uint8), 1).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("severity", [0, 6])
def test_a_severity_out_of_range_is_refused(severity: int, pictures: np.ndarray) -> None:
    with pytest.raises(ValueError, match="it must be one of"):
        corrupt("fog", pictures, severity)


def test_some_corruptions_do_what_their_name_says(pictures: np.ndarray) -> None:
    grey = np.full((1, 32, 32, 3), 100, np.uint8)
    assert corrupt("gaussian_noise", grey, 5).std() == pytest.approx(0.10 * 255, rel=0.1)
    assert (corrupt("impulse_noise", grey, 5) != 100).mean() == pytest.approx(0.07, rel=0.2)
    assert corrupt("brightness", grey, 5) == pytest.approx(100 + 0.3 * 255, abs=1)
    spread = corrupt("contrast", pictures, 5).std((1, 2)) / pictures.std((1, 2))
    assert spread == pytest.approx(np.full((8, 3), 0.15), rel=0.1)
    for blur in ("defocus_blur", "motion_blur", "zoom_blur", "pixelate"):
        edges = [np.abs(np.diff(one.astype(int), axis=2)).mean() for one in (pictures, corrupt(blur, pictures, 5))]
        assert edges[1] < edges[0], blur
