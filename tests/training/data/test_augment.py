import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from training.data import augment
from training.data.augment import BatchRandom

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(seed: int = 0, count: int = len(IMAGES)) -> BatchRandom:
    return BatchRandom(generator(seed), count)


def test_flip_mirrors_the_chosen_images_only() -> None:
    mirrored = torch.tensor([True, False] * 6)
    flipped = augment.flip(IMAGES, mirrored)
    for image, result, chosen in zip(IMAGES.numpy(), flipped.numpy(), mirrored, strict=True):
        assert np.array_equal(result, np.fliplr(image) if chosen else image)


@given(st.integers(1, 40), st.integers(0, 20), st.integers(0, 1000))
@settings(max_examples=25)
def test_every_image_is_seen_both_ways_in_two_epochs(count: int, epoch: int, seed: int) -> None:
    now, after = (augment.alternating_flips(count, epoch + more, seed) for more in (0, 1))
    assert torch.equal(now, ~after)
    assert torch.equal(now, augment.alternating_flips(count, epoch + 2, seed))


def test_about_half_of_the_images_start_mirrored() -> None:
    assert augment.alternating_flips(10_000, 0, seed=0).float().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("pixels", [1, 4, 31])
def test_shift_is_a_window_of_the_reflected_image(pixels: int) -> None:
    shifted = augment.shift(IMAGES, pixels, random())
    rows, columns = torch.randint(2 * pixels + 1, (2, len(IMAGES)), generator=generator())
    for image, result, row, column in zip(IMAGES.numpy(), shifted.numpy(), rows, columns, strict=True):
        padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")
        assert np.array_equal(result, padded[row : row + 32, column : column + 32])


def test_shift_reaches_every_offset() -> None:
    picture = torch.arange(32 * 32).remainder(251).to(torch.uint8).reshape(1, 32, 32, 1).expand(2000, 32, 32, 3)
    corners = augment.shift(picture, 1, random(count=2000))[:, 5, 5, 0]
    assert len(corners.unique()) == 9


@pytest.mark.parametrize("side", [1, 10, 32])
def test_cutout_hides_one_square_around_a_random_centre(side: int) -> None:
    result = augment.cutout(IMAGES, side, random()).numpy()
    draw = generator()
    rows, columns = (torch.randint(32, (len(IMAGES), 1), generator=draw) for _ in range(2))
    for image, hidden, row, column in zip(IMAGES.numpy(), result, rows, columns, strict=True):
        expected = image.copy()
        top, left = int(row) - side // 2, int(column) - side // 2
        expected[max(0, top) : top + side, max(0, left) : left + side] = 128
        assert np.array_equal(hidden, expected)


@pytest.mark.parametrize("change", [augment.shift, augment.cutout])
def test_the_seed_decides_an_augmentation(change: object) -> None:
    assert callable(change)
    before = IMAGES.clone()
    first, again, other = (change(IMAGES, 8, random(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(IMAGES, before)  # pure
    assert first.dtype == torch.uint8 and first.shape == IMAGES.shape and first.is_contiguous()
    assert torch.equal(change(IMAGES, 0, random()), IMAGES)


def test_zoom_leaves_half_of_the_images_and_resamples_the_others_around_their_centre() -> None:
    many = IMAGES[:1].expand(2000, 32, 32, 3)
    zoomed = augment.zoom(many, 1.3, random(count=2000))
    assert zoomed.dtype == torch.uint8
    same = (zoomed == many).flatten(1).all(1)
    assert same.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(augment.zoom(IMAGES, 1.0, random()), IMAGES)


def test_zoom_draws_factors_up_to_the_largest_in_both_directions() -> None:
    square = torch.zeros(500, 32, 32, 3, dtype=torch.uint8)
    square[:, 8:24, 8:24] = 200
    zoomed = augment.zoom(square, 1.25, random(count=500))
    width = zoomed[:, 16, :, 0].float().sum(1) / 200
    assert width.min().item() == pytest.approx(16 / 1.25, abs=0.3)
    assert width.max().item() == pytest.approx(16 * 1.25, abs=0.3)
    assert torch.equal(zoomed.flip(2), zoomed)


def test_zoom_of_an_even_image_changes_nothing() -> None:
    even = torch.full((20, 32, 32, 3), 77, dtype=torch.uint8)
    assert torch.equal(augment.zoom(even, 2.0, random(count=20)), even)


def test_zoom_may_choose_no_image_at_all() -> None:
    for seed in range(20):
        augment.zoom(IMAGES[:1], 1.3, random(seed, count=1))


def test_colour_is_brightness_then_contrast_then_saturation() -> None:
    result = augment.colour(IMAGES, 0.3, random()).numpy()
    brightness, contrast, saturation = 1 + 0.3 * (torch.rand(3, len(IMAGES), generator=generator()) * 2 - 1).numpy()
    luma = np.array([0.299, 0.587, 0.114])
    for image, changed, b, c, s in zip(IMAGES.numpy(), result, brightness, contrast, saturation, strict=True):
        expected = image * b
        expected = (expected @ luma).mean() * (1 - c) + expected * c
        expected = (expected @ luma)[..., None] * (1 - s) + expected * s
        assert np.abs(expected.clip(0, 255) - changed).max() <= 0.51
    assert torch.equal(augment.colour(IMAGES, 0.0, random()), IMAGES)


def test_colour_leaves_greys_grey() -> None:
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(8, 16, 16, 3)
    changed = augment.colour(grey, 0.5, random(count=8))
    assert (changed.amax(3) - changed.amin(3)).max().item() <= 1


@given(st.integers(1, 12), st.data())
@settings(max_examples=25)
def test_a_part_of_a_batch_is_augmented_as_in_the_whole(count: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, count - 1))
    part = slice(first, data.draw(st.integers(first + 1, count)))

    def augmented(images: torch.Tensor, random: BatchRandom) -> torch.Tensor:
        for change, strength in ((augment.shift, 4), (augment.zoom, 1.3), (augment.colour, 0.3), (augment.cutout, 10)):
            images = change(images, strength, random)  # type: ignore[arg-type]
        return images

    whole = augmented(IMAGES[:count], random(count=count))
    assert torch.equal(augmented(IMAGES[:count][part], BatchRandom(generator(), count, part)), whole[part])
