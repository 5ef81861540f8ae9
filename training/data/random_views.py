"""Random views of images on the device that holds them: nothing waits for the CPU.

Flip, shift and zoom are one resampling; images that are only mirrored and shifted by whole pixels stay as sharp as
they were. Mixing is mixup (Zhang et al. 2018, arXiv:1710.09412) and cutmix (Yun et al. 2019, arXiv:1905.04899).
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """The largest changes of a view."""

    shift: float  # fraction of the side, in whole pixels
    zoom: float  # factor, in and out
    zoomed: float  # share of the images that are zoomed
    stretch: float  # factor between width and height, for zoomed images
    colour: float  # relative change of brightness, contrast and saturation
    cutout: float  # side of the hidden square, fraction of the side


THUMBNAILS = Augmentation(shift=0.125, zoom=1.25, zoomed=0.5, stretch=1.1, colour=0.15, cutout=0.34)
PHOTOGRAPHS = Augmentation(shift=0.17, zoom=1.7, zoomed=0.8, stretch=1.25, colour=0.25, cutout=0.25)


def random_views(images: Tensor, how: Augmentation, generator: Generator) -> Tensor:
    """float32 [N, 3, S, S], whole numbers from 0 to 255, from uint8 [N, S, S, 3]."""
    count, side = images.shape[:2]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=images.device)

    pixels = images.permute(0, 3, 1, 2).float()
    zoomed = (uniform(count) < how.zoomed).float()
    powers, stretches = ((2 * row - 1) * zoomed for row in uniform(2, count))
    scale = torch.exp(powers * math.log(how.zoom))
    ratio = torch.exp(stretches * math.log(how.stretch) / 2)
    mirror = torch.where(uniform(count) < 0.5, -1.0, 1.0)
    shifts = ((2 * uniform(2, count) - 1) * (how.shift * side)).round() * (2 / side)
    theta = torch.zeros(count, 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1] = mirror * scale * ratio, scale / ratio
    theta[:, 0, 2], theta[:, 1, 2] = shifts
    grid = F.affine_grid(theta, [count, 3, side, side], align_corners=False)
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    brightness, contrast, saturation = (1 + how.colour * (2 * uniform(3, count) - 1))[..., None, None, None]
    pixels = pixels * brightness
    pixels = torch.lerp(_grey(pixels).mean((2, 3), keepdim=True), pixels, contrast)
    pixels = torch.lerp(_grey(pixels), pixels, saturation)
    hidden = _squares(uniform(2, count), torch.full((count,), how.cutout, device=images.device), side)
    return pixels.round().clamp(0, 255).masked_fill(hidden, 128.0)


def mixup(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Each image [N, 3, S, S] mixed with its neighbour in the batch, and the targets [N, classes] likewise."""
    share = torch.rand(len(images), generator=generator, device=images.device)
    mixed = torch.lerp(images.roll(1, 0), images, share[:, None, None, None])
    return mixed, torch.lerp(targets.roll(1, 0), targets, share[:, None])


def cutmix(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """A square of each image replaced by that of its neighbour in the batch, and the targets mixed by area."""
    count, side = len(images), images.shape[-1]
    sides = torch.rand(count, generator=generator, device=images.device).sqrt()
    centres = torch.rand(2, count, generator=generator, device=images.device)
    box = _squares(centres, sides, side)
    kept = 1 - box.float().mean((1, 2, 3))
    return torch.where(box, images.roll(1, 0), images), torch.lerp(targets.roll(1, 0), targets, kept[:, None])


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    grey: Tensor = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return grey


def _squares(centres: Tensor, sides: Tensor, side: int) -> Tensor:
    """bool [N, 1, side, side]: squares around `centres` [2, N]; near the border a part falls outside."""
    steps = (torch.arange(side, device=centres.device) + 0.5) / side
    rows, columns = ((steps - centre[:, None]).abs() < sides[:, None] / 2 for centre in centres)
    squares: Tensor = rows[:, :, None] & columns[:, None, :]
    return squares[:, None]
