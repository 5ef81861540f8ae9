"""Fifteen corruptions of images, in five severities, in the style of CIFAR-10-C.

Hendrycks & Dietterich 2019 (arXiv:1903.12261) named the corruptions. This is other code with other strengths, and
frost is drawn instead of photographed: do not compare figures with those of the published CIFAR-10-C files.

    corrupted = CORRUPTIONS["fog"](images, severity, np.random.default_rng(0))

Each takes uint8 images [N, side, side, 3] and returns new ones of the same shape.
"""

import io
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Corruption = Callable[[Images, int, np.random.Generator], Images]

SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(pixels: Floats, strength: float, random: np.random.Generator) -> Floats:
    """`strength` is the standard deviation. All corruptions work on values from 0 to 1."""
    return pixels + random.normal(0, strength, pixels.shape).astype(np.float32)


def shot_noise(pixels: Floats, photons: float, random: np.random.Generator) -> Floats:
    return (random.poisson(pixels * photons) / photons).astype(np.float32)


def impulse_noise(pixels: Floats, share: float, random: np.random.Generator) -> Floats:
    hit = random.random(pixels.shape) < share
    return np.where(hit, random.integers(0, 2, pixels.shape).astype(np.float32), pixels)


def defocus_blur(pixels: Floats, radius: float, _: np.random.Generator) -> Floats:
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # A disc whose edge is one pixel soft, so that radii between whole pixels differ.
    disc = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1)
    return np.asarray(ndimage.convolve(pixels, (disc / disc.sum())[None, :, :, None], mode="reflect"), np.float32)


def glass_blur(pixels: Floats, reach: float, random: np.random.Generator) -> Floats:
    """Pixels are replaced by others nearby, and the result is blurred a little."""
    n, height, width, _ = pixels.shape
    offsets = random.uniform(-reach, reach, (2, n, height, width))
    rows = np.clip(np.rint(np.arange(height)[:, None] + offsets[0]), 0, height - 1).astype(int)
    columns = np.clip(np.rint(np.arange(width) + offsets[1]), 0, width - 1).astype(int)
    moved = pixels[np.arange(n)[:, None, None], rows, columns]
    return np.asarray(ndimage.gaussian_filter(moved, (0, 0.4, 0.4, 0)), np.float32)


def motion_blur(pixels: Floats, length: float, random: np.random.Generator) -> Floats:
    angles = random.uniform(-np.pi / 4, np.pi / 4, len(pixels))
    return np.stack([_smear(image, length, angle) for image, angle in zip(pixels, angles.tolist(), strict=True)])


def zoom_blur(pixels: Floats, most: float, _: np.random.Generator) -> Floats:
    """The mean over enlargements up to the factor `most`."""
    factors = np.linspace(1, most, 7)
    return np.asarray(np.mean([_enlarged(pixels, factor) for factor in factors], axis=0), np.float32)


def snow(pixels: Floats, amount: float, random: np.random.Generator) -> Floats:
    n, height, width, _ = pixels.shape
    flakes = (random.random((n, height, width)) < 0.08 * amount + 0.02).astype(np.float32)
    angles = random.uniform(np.pi / 4, 3 * np.pi / 4, (n,))
    drift = [_smear(one[..., None], 3, angle) for one, angle in zip(flakes, angles.tolist(), strict=True)]
    grey = pixels.mean(3, keepdims=True)
    whitened = pixels + amount * 0.4 * (np.maximum(pixels, grey * 1.2 + 0.3) - pixels)
    return np.asarray(whitened + np.stack(drift) * (0.5 + amount), np.float32)


def frost(pixels: Floats, amount: float, random: np.random.Generator) -> Floats:
    """Bright needles that grow from the border, drawn from noise that is stretched in two directions."""
    n, height, width, _ = pixels.shape
    noise = random.normal(0, 1, (2, n, height, width))
    needles = np.maximum(
        ndimage.gaussian_filter(noise[0], (0, 0.5, 2.5)), ndimage.gaussian_filter(noise[1], (0, 2.5, 0.5))
    )
    needles = np.clip(needles / needles.std((1, 2), keepdims=True), 0, 2)[..., None] / 2
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    from_centre = np.maximum(np.abs(x), np.abs(y))[None, ..., None]
    cover = np.clip(amount * (0.4 + 0.9 * needles * (0.4 + from_centre)), 0, 1)
    ice = np.array([0.85, 0.92, 1.0], np.float32)
    return np.asarray((1 - cover) * pixels + cover * ice, np.float32)


def fog(pixels: Floats, amount: float, random: np.random.Generator) -> Floats:
    n, height, width, _ = pixels.shape
    cloud = np.zeros((n, height, width))
    for scale in (1, 2, 4, 8):  # coarse as well as fine
        noise = random.normal(0, 1, cloud.shape)
        cloud += scale * ndimage.gaussian_filter(noise, (0, scale, scale), mode="wrap")
    low, high = cloud.min((1, 2), keepdims=True), cloud.max((1, 2), keepdims=True)
    density = ((cloud - low) / (high - low))[..., None].astype(np.float32)
    brightest = pixels.max((1, 2, 3), keepdims=True)
    return np.asarray((pixels + amount * density) * brightest / (brightest + amount), np.float32)


def brightness(pixels: Floats, amount: float, _: np.random.Generator) -> Floats:
    return pixels + amount


def contrast(pixels: Floats, kept: float, _: np.random.Generator) -> Floats:
    mean = pixels.mean((1, 2), keepdims=True)
    return np.asarray((pixels - mean) * kept + mean, np.float32)


def elastic_transform(pixels: Floats, amount: float, random: np.random.Generator) -> Floats:
    """Every place moves by about `amount` pixels, neighbours alike (Simard et al. 2003)."""
    n, height, width, _ = pixels.shape
    shifts = ndimage.gaussian_filter(random.uniform(-1, 1, (2, n, height, width)), (0, 0, 3, 3), mode="reflect")
    shifts *= amount / np.maximum(shifts.std((2, 3), keepdims=True), 1e-6)
    rows, columns = np.mgrid[:height, :width]
    moved = np.empty_like(pixels)
    for index, image in enumerate(pixels):
        places = [rows + shifts[0, index], columns + shifts[1, index]]
        for channel in range(3):
            moved[index, ..., channel] = ndimage.map_coordinates(image[..., channel], places, order=1, mode="reflect")
    return moved


def pixelate(pixels: Floats, share: float, _: np.random.Generator) -> Floats:
    side = pixels.shape[1]
    small = max(round(side * share), 1)
    return np.stack([_as_floats(_resized(_resized(image, small), side)) for image in _as_bytes(pixels)])


def jpeg_compression(pixels: Floats, quality: float, _: np.random.Generator) -> Floats:
    def compressed(image: Images) -> Images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(quality))
        return np.asarray(Image.open(file))

    return np.stack([_as_floats(compressed(image)) for image in _as_bytes(pixels)])


Damage = Callable[[Floats, float, np.random.Generator], Floats]


def _corruption(damage: Damage, strengths: tuple[float, float, float, float, float]) -> Corruption:
    def corrupt(images: Images, severity: int, random: np.random.Generator) -> Images:
        """Raises ValueError for a severity that is not 1 to 5."""
        if severity not in SEVERITIES:
            raise ValueError(f"severity is {severity}: it must be one of {SEVERITIES}")
        if not len(images):
            return images.copy()
        return _as_bytes(damage(_as_floats(images), strengths[severity - 1], random))

    return corrupt


# In the order of the paper: noise, blur, weather, digital.
CORRUPTIONS: Mapping[str, Corruption] = {
    damage.__name__: _corruption(damage, strengths)
    for damage, strengths in (
        (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
        (shot_noise, (500.0, 250.0, 100.0, 75.0, 50.0)),
        (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
        (defocus_blur, (0.6, 0.9, 1.2, 1.6, 2.1)),
        (glass_blur, (0.55, 0.65, 0.8, 1.0, 1.3)),
        (motion_blur, (1.5, 2.2, 3.0, 4.0, 5.0)),
        (zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
        (snow, (0.15, 0.3, 0.45, 0.6, 0.8)),
        (frost, (0.15, 0.25, 0.35, 0.45, 0.55)),
        (fog, (0.2, 0.5, 0.75, 1.0, 1.5)),
        (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
        (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
        (elastic_transform, (0.5, 0.8, 1.1, 1.5, 2.0)),
        (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
        (jpeg_compression, (80.0, 65.0, 55.0, 45.0, 35.0)),
    )
}


def _smear(image: Floats, length: float, angle: float) -> Floats:
    """The mean of an image [H, W, C] over shifts along a line of `length` pixels."""
    total = np.zeros_like(image)
    steps = np.linspace(-length / 2, length / 2, 9)
    for step in steps:
        offset = (step * np.sin(angle), step * np.cos(angle), 0)
        total += ndimage.affine_transform(image, np.eye(3), offset, order=1, mode="reflect")
    return np.asarray(total / len(steps), np.float32)


def _enlarged(pixels: Floats, factor: float) -> Floats:
    """Images [N, H, W, C] around their centre."""
    matrix = np.diag([1, 1 / factor, 1 / factor, 1])
    centre = np.array([0, (pixels.shape[1] - 1) / 2, (pixels.shape[2] - 1) / 2, 0])
    enlarged: Floats = ndimage.affine_transform(pixels, matrix, centre - matrix @ centre, order=1, mode="reflect")
    return enlarged


def _resized(image: Images, side: int) -> Images:
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))


def _as_floats(images: Images) -> Floats:
    return np.asarray(images.astype(np.float32) / 255, np.float32)


def _as_bytes(pixels: Floats) -> Images:
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
