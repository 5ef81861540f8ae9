"""What every peer does with an image, so that servers are compared and not decoders or models.

    graph = Graph()
    answer(graph.logits(decode(upload)))

Only Pillow, NumPy and ONNX Runtime are needed: each peer imports this from a virtual environment of its own.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BUNDLE = Path(__file__).parents[4] / "models/mobilenet_v2_cifar10"
MANIFEST = json.loads((BUNDLE / "bundle.json").read_text())
CLASSES: list[str] = MANIFEST["classes"]
TEMPERATURE: float = MANIFEST["calibration"]["temperature"]
TOP_K = 5


def decode(upload: bytes) -> NDArray[np.uint8]:
    """uint8 RGB [1, 32, 32, 3] of an image file.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where 256 pixels a side remain, as the service does: otherwise
    photos would measure that one trick (Pillow documents it as Image.draft), and not the server.
    """
    image = Image.open(io.BytesIO(upload))
    image.draft("RGB", (256, 256))
    return np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))[None]


class Graph:
    """The bundle's ONNX graph on the caller's thread: on two cores, two at a time with one thread each.

    onnxruntime.ai/docs/performance/tune-performance/threading.html: the intra-op pool is for one request that is to
    have all cores; here processes or threads of the server use them, and more threads than cores only get in the way.
    """

    def __init__(self) -> None:
        import onnxruntime  # not in the textbook's environment

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(BUNDLE / "model.onnx", options, providers=["CPUExecutionProvider"])

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [N, 10] of uint8 [N, 32, 32, 3]."""
        logits: NDArray[np.float32] = self._session.run(["logits"], {"images": images})[0]
        return logits


def answer(logits: NDArray[np.float32]) -> dict[str, Any]:
    """The five most probable classes, of float32 [10] or [1, 10]."""
    scaled = logits.reshape(-1).astype(np.float64) / TEMPERATURE
    powers = np.exp(scaled - scaled.max())
    probabilities = powers / powers.sum()
    best = np.argsort(-probabilities)[:TOP_K]
    return {
        "predictions": [
            {"label": CLASSES[index], "class_id": int(index), "probability": round(float(probabilities[index]), 6)}
            for index in best
        ]
    }
