"""Batched augmentation: pure functions from uint8 images [N, H, W, C] to the same shape, with given random numbers."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = torch.tensor([0.299, 0.587, 0.114])  # of red, green, blue


class BatchRandom:
    """Random numbers for a part of a batch of `count` images: those that it gets when the whole batch is augmented."""

    def __init__(self, generator: torch.Generator, count: int, part: slice = slice(None)) -> None:
        self._generator, self._count, self._part = generator, count, part

    def integers(self, high: int, rows: int) -> Tensor:
        """int64 [rows, images], from 0 to `high` - 1."""
        return torch.randint(high, (rows, self._count), generator=self._generator)[:, self._part]

    def fractions(self, rows: int) -> Tensor:
        """float32 [rows, images], at least 0 and below 1."""
        return torch.rand(rows, self._count, generator=self._generator)[:, self._part]


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left and right the images where `mirrored` (bool [N]) is true."""
    return torch.where(mirrored[:, None, None, None], images.flip(2), images)


def alternating_flips(count: int, epoch: int, seed: int) -> Tensor:
    """bool [count]: which images are mirrored in `epoch`; random in epoch 0, then alternating.

    Two epochs show every image both ways (Jordan 2024, arXiv:2404.00498).
    """
    first = torch.randint(2, (count,), generator=torch.Generator().manual_seed(seed))
    return (first + epoch) % 2 == 1


def shift(images: Tensor, pixels: int, random: BatchRandom) -> Tensor:
    """Move each image by up to `pixels` in each direction; the border is filled with its reflection."""
    if pixels == 0:
        return images
    count, height, width, _ = images.shape
    rows, columns = random.integers(2 * pixels + 1, 2)
    padded = _reflect(_reflect(images, pixels, 1), pixels, 2)
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # a view: [N, 2p+1, 2p+1, C, H, W]
    return windows[torch.arange(count), rows, columns].permute(0, 2, 3, 1).contiguous()


def zoom(images: Tensor, factor: float, random: BatchRandom) -> Tensor:
    """Zoom a random half of the images in or out around their centre, by up to `factor` (1 turns it off).

    Factors are uniform on a logarithmic scale; interpolation is bilinear, and the border is filled with its reflection.
    The other half stays as sharp as the images that the network will meet.
    """
    if factor == 1:
        return images
    (powers,) = random.fractions(1) * 2 - 1
    chosen = random.fractions(1)[0] < 0.5
    if not chosen.any():  # as in every fourth batch of two
        return images
    scale = torch.exp(powers[chosen] * -math.log(factor))
    theta = torch.zeros(len(scale), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    pixels = images[chosen].permute(0, 3, 1, 2).float()
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    zoomed = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    result = images.clone()
    result[chosen] = zoomed.round().to(torch.uint8).permute(0, 2, 3, 1)
    return result


def colour(images: Tensor, strength: float, random: BatchRandom) -> Tensor:
    """Change brightness, contrast and saturation of each image by factors from 1 - strength to 1 + strength.

    Brightness scales all values, contrast their distance from the image's mean grey, saturation that from
    each pixel's grey (ITU-R BT.601 luma), in that order and clipped once.
    """
    if strength == 0:
        return images
    factors = 1 + strength * (random.fractions(3) * 2 - 1)
    brightness, contrast, saturation = factors[..., None, None, None]
    pixels = images.float() * brightness
    grey = pixels @ LUMA
    pixels = torch.lerp(grey.mean((1, 2))[:, None, None, None], pixels, contrast)
    pixels = torch.lerp((pixels @ LUMA)[..., None], pixels, saturation)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def cutout(images: Tensor, side: int, random: BatchRandom) -> Tensor:
    """Hide a square of `side` pixels around a random centre behind mid-grey (DeVries & Taylor 2017).

    arXiv:1708.04552. Near the border part of the square falls outside.
    """
    if side == 0:
        return images
    _, height, width, _ = images.shape
    row = random.integers(height, 1).T - side // 2
    column = random.integers(width, 1).T - side // 2
    y, x = torch.arange(height), torch.arange(width)
    hidden_rows = (y >= row) & (y < row + side)
    hidden_columns = (x >= column) & (x < column + side)
    hidden = hidden_rows[:, :, None] & hidden_columns[:, None, :]
    return images.masked_fill(hidden[..., None], 128)


def _reflect(images: Tensor, pixels: int, dim: int) -> Tensor:
    size = images.shape[dim]
    index = torch.arange(-pixels, size + pixels).abs()
    return images.index_select(dim, torch.where(index >= size, 2 * (size - 1) - index, index))
