"""The network in PyTorch. Training imports it; the service imports it only for the PyTorch session."""

from .mobilenet import Preprocessed, mobilenet_v2

__all__ = ["Preprocessed", "mobilenet_v2"]
