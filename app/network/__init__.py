"""What is computed in PyTorch: training imports it, and the PyTorch session on demand."""

from .mobilenet import Preprocessed, mobilenet_v2

__all__ = ["Preprocessed", "mobilenet_v2"]
