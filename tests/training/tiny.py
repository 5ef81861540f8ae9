"""The smallest run: a network that costs little, a few steps, images in CIFAR-10's shape."""

import numpy as np
import torch
from torchvision.models.mobilenetv2 import MobileNetV2

from app.bundle import Architecture
from training.config import Config
from training.data import LabelledImages

TINY = Config(stem_stride=2, stage2_stride=2, epochs=2, batch_size=8)


def make_images(count: int, seed: int) -> LabelledImages:
    """Noise whose brightness tells the class; labels go round."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    pixels = random.integers(0, 60, (count, 32, 32, 3)) + 19 * labels[:, None, None, None]
    return LabelledImages(torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels))


def shallow(_: Architecture, classes: int = 10) -> MobileNetV2:
    """Stands for app.network.mobilenet_v2 where only the loop around it is tested: every kind of layer, few of them."""
    stages = [[1, 16, 1, 2], [6, 24, 2, 2]]
    network = MobileNetV2(num_classes=classes, width_mult=0.5, inverted_residual_setting=stages, dropout=0.0)
    return network.to(memory_format=torch.channels_last)
