"""Views on a device: the same function of a seed, and what each change may do."""

import torch

from training.data.random_views import PHOTOGRAPHS, THUMBNAILS, Augmentation, cutmix, mixup, random_views

NOTHING = Augmentation(shift=0, zoom=1, zoomed=0, stretch=1, colour=0, cutout=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 6, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=seeded(9))


def test_a_view_is_a_function_of_its_seed() -> None:
    first, again, other = (random_views(pictures(), THUMBNAILS, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_views_are_whole_numbers_of_a_byte_in_the_shape_that_networks_take() -> None:
    views = random_views(pictures(4, 64), PHOTOGRAPHS, seeded())
    assert views.shape == (4, 3, 64, 64)
    assert torch.equal(views, views.round())
    assert 0 <= views.min() <= views.max() <= 255


def test_without_changes_an_image_is_itself_or_its_mirror_image() -> None:
    views = random_views(pictures(40), NOTHING, seeded())
    plain = pictures(40).permute(0, 3, 1, 2).float()
    same = (views == plain).flatten(1).all(1)
    mirrored = (views == plain.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 8 < same.sum() < 32


def test_shifts_are_whole_pixels_so_they_invent_no_values() -> None:
    stripes = (torch.arange(32) % 2 * 255).to(torch.uint8).expand(20, 32, 32)[..., None].expand(20, 32, 32, 3)
    views = random_views(stripes, Augmentation(0.125, 1, 0, 1, 0, 0), seeded())
    assert set(views.unique().tolist()) == {0.0, 255.0}


def test_mixup_mixes_pixels_and_targets_by_the_same_share() -> None:
    images = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 200.0)])
    mixed, targets = mixup(images, torch.eye(2), seeded())
    assert torch.allclose(mixed[:, 0, 0, 0], targets[:, 1] * 200)
    assert torch.allclose(targets.sum(1), torch.ones(2))


def test_cutmix_mixes_targets_by_the_area_that_is_replaced() -> None:
    images = torch.stack([torch.zeros(3, 16, 16), torch.full((3, 16, 16), 200.0)])
    mixed, targets = cutmix(images, torch.eye(2), seeded(3))
    assert torch.allclose(mixed.mean((1, 2, 3)) / 200, targets[:, 1], atol=1e-6)
    assert set(mixed.unique().tolist()) == {0.0, 200.0}
