"""The work for one image, the same for every peer, so that the benchmark compares servers and not decoders or models.

    graph = Graph()
    answer(graph.logits(decode(upload)))

It needs only Pillow, NumPy and ONNX Runtime, because each peer imports it in its own virtual environment.
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
    """Decode an image file to uint8 RGB [1, 32, 32, 3].

    As in the service, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if at least 256 pixels a side remain
    (Image.draft). Otherwise the results for photos would show that difference, not the servers.
    """
    image = Image.open(io.BytesIO(upload))
    image.draft("RGB", (256, 256))
    return np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))[None]


class Graph:
    """The bundle's ONNX graph, run on the caller's thread. On two cores, two callers run with one thread each.

    The intra-op pool is for requests that use all cores (onnxruntime.ai/docs/performance/tune-performance/
    threading.html). Here the server's processes or threads use the cores, and more threads would only compete.
    """

    def __init__(self) -> None:
        import onnxruntime  # missing in the environment of the textbook peer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(BUNDLE / "model.onnx", options, providers=["CPUExecutionProvider"])

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits, float32 [N, 10], for images, uint8 RGB [N, 32, 32, 3]."""
        logits: NDArray[np.float32] = self._session.run(["logits"], {"images": images})[0]
        return logits


def answer(logits: NDArray[np.float32]) -> dict[str, Any]:
    """The five most probable classes for logits, float32 [10] or [1, 10]."""
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
