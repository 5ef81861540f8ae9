"""Image classification over HTTP: which of the ten CIFAR-10 classes an image shows."""

import os

__version__ = "0.1.0"

# Here, because it must be set before anything imports ONNX Runtime, which else reports its use to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
