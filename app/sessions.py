"""Inference sessions behind one protocol: uint8 images in, logits out; ONNX Runtime by default, PyTorch on demand.

    bundle, session = load_session(settings)
    session.logits(images)  # uint8 [N, 32, 32, 3] -> float32 [N, 10]

A session is safe to call from several threads at once and computes each call on the caller's thread.
"""

import io
from typing import Protocol, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from app.bundle import Bundle
from app.settings import Settings

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]

SELF_CHECK_TOLERANCE = 1e-2  # of a logit: engines and processors differ in the last digits, damage does not


class SessionError(Exception):
    """The session cannot be built, or fails its self-check; the message is one line for the operator."""


class Session(Protocol):
    def logits(self, images: Images) -> Logits:
        """float32 [N, classes] of uint8 [N, H, W, 3]."""
        ...


class OnnxSession:
    def __init__(self, bundle: Bundle) -> None:
        options = onnxruntime.SessionOptions()
        # The engine's workers are the parallelism: one thread each, and none that spins while it waits.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            bundle.read("model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def logits(self, images: Images) -> Logits:
        (logits,) = self._session.run(["logits"], {"images": images})
        return cast(Logits, logits)


class TorchSession:
    """The same weights in PyTorch, on a GPU where there is one."""

    def __init__(self, bundle: Bundle) -> None:
        try:
            import torch
            from safetensors.torch import load

            from app.network import Preprocessed, mobilenet_v2
        except ImportError as error:
            raise SessionError(
                f"ENGINE=torch needs the extra 'torch' ({error}); ENGINE=onnx needs nothing more"
            ) from None
        manifest = bundle.manifest
        network = mobilenet_v2(manifest.architecture, len(manifest.classes))
        network.load_state_dict(load(bundle.read("checkpoint.safetensors")))
        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = Preprocessed(network, manifest.input.mean, manifest.input.std).to(self._device).eval()

    def logits(self, images: Images) -> Logits:
        torch = self._torch
        if torch.get_num_threads() != 1:  # the number is each calling thread's own
            torch.set_num_threads(1)
        with torch.inference_mode():
            logits: Logits = self._model(torch.tensor(images, device=self._device)).cpu().numpy()
        return logits


def load_session(settings: Settings) -> tuple[Bundle, Session]:
    """Load and verify the bundle, build the session and let it prove itself on the bundle's own image.

    Raises BundleError or SessionError.
    """
    bundle = Bundle.load(settings.model_dir)
    session: Session = OnnxSession(bundle) if settings.engine == "onnx" else TorchSession(bundle)
    for weights in ("model.onnx", "checkpoint.safetensors"):
        bundle.forget(weights)
    self_check(session, bundle)
    return bundle, session


def self_check(session: Session, bundle: Bundle) -> None:
    """Raises SessionError unless the session gives the logits that the bundle says it must."""
    check = bundle.manifest.self_check
    with Image.open(io.BytesIO(check.image), formats=["PNG"]) as picture:
        image = np.asarray(picture.convert("RGB"))
    difference = float(np.abs(session.logits(image[None])[0] - np.array(check.logits, np.float32)).max())
    if not difference <= SELF_CHECK_TOLERANCE:
        raise SessionError(f"the model fails its self-check: a logit is off by {difference:.3g}")
