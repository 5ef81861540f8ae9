"""Image classification: which of the ten CIFAR-10 classes an image shows, over HTTP or in Python.

    from cifar10_classifier import load      # in a clone of the repository: from app import load

    with load() as classifier:
        print(classifier("cat.jpg").predictions[0])

Importing this package loads no model and no library. See `local` for `load`, `client` for a client of the service.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .local import load

__all__ = ["load"]
__version__ = "0.1.0"

# Here, because it must be set before anything imports ONNX Runtime, which else reports its use to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    # On demand: the decoding processes import this package, too, and need no ONNX Runtime.
    if name == "load":
        from .local import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
