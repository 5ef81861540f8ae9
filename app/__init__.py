"""Image classification over HTTP: which of the ten CIFAR-10 classes an image shows."""

__version__ = "0.1.0"
