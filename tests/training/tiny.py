"""The smallest run: a network that costs little, a few steps, images in CIFAR-10's shape."""

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torchvision.models.mobilenetv2 import MobileNetV2

from app.bundle.manifest import Architecture
from app.network.mobilenet import Preprocessed, mobilenet_v2
from training.config import IMAGENET_MEAN, IMAGENET_STD, Config
from training.data.cifar10 import LabelledImages

TINY = Config(enlarge=1, epochs=2, batch_size=8, zoom=1.0, colour=0.0)
TINY_OPTIONS = (
    *("--enlarge", "1", "--epochs", "2", "--batch-size", "8", "--zoom", "1", "--colour", "0"),
    *("--init", "random"),
)
FASHION_HEADER = np.array([2051, 10000, 28, 28], ">i4").tobytes()  # of Fashion-MNIST's test images


def make_images(count: int, seed: int) -> LabelledImages:
    """Noise whose brightness depends on the class; labels repeat from 0 to 9."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    pixels = random.integers(0, 60, (count, 32, 32, 3)) + 19 * labels[:, None, None, None]
    return LabelledImages(torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels))


def lively_weights() -> bytes:
    """Initial weights, as safetensors, whose batch norms have the statistics of images.

    With fresh norms, a network gives all images the same logits and scores after a few steps, and every comparison of
    those would pass.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = mobilenet_v2(TINY.architecture)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of the one batch that follows
    with torch.no_grad():
        Preprocessed(network, IMAGENET_MEAN, IMAGENET_STD).train()(make_images(60, seed=3).images)
    return save({name: value.contiguous() for name, value in network.state_dict().items()})


def shallow(_: Architecture, classes: int = 10, side: int = 32) -> MobileNetV2:
    """A stand-in for app.network.mobilenet_v2 in tests of the loop around it: every kind of layer, but few of them."""
    stages = [[1, 16, 1, 2], [6, 24, 2, 2]]
    network = MobileNetV2(num_classes=classes, width_mult=0.5, inverted_residual_setting=stages, dropout=0.0)
    return network.to(memory_format=torch.channels_last)
