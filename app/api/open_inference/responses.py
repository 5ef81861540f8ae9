"""Inference responses of the Open Inference Protocol: JSON, with the binary and classification extensions.

    body, header_length = render(request, probabilities, model, request_id)

An answer has at most a few kilobytes, whatever the request holds: a number or a label for each image and class, and
the request's id, whose length is limited.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...inference.decisions import top_k
from .models import VERSION, ServedModel
from .requests import InferenceRequest


def render(
    request: InferenceRequest, probabilities: Sequence[Sequence[float]], model: ServedModel, request_id: str
) -> tuple[bytes, int | None]:
    """The response's body, and the length of its JSON if something binary follows that.

    `probabilities` are float64 [classes] of each image; `request_id` is used if the request has no id.
    """
    output: dict[str, Any] = {"name": model.output.name, "datatype": model.output.datatype}
    data: list[Any]
    if request.classes:
        data = [text for values in probabilities for text in _classification(values, model.labels, request.classes)]
        output |= {"datatype": "BYTES", "shape": [len(probabilities), min(request.classes, len(model.labels))]}
        binary = b"".join(len(item).to_bytes(4, "little") + item for item in (text.encode() for text in data))
    else:
        values = np.stack(probabilities).astype("<f4")
        output |= {"shape": list(values.shape)}
        data = values.ravel().tolist()
        binary = values.tobytes()
    output |= {"parameters": {"binary_data_size": len(binary)}} if request.binary else {"data": data}
    document = {
        "model_name": model.name,
        "model_version": VERSION,
        "id": request_id if request.id is None else request.id,
        "outputs": [output],
    }
    header = json.dumps(document, separators=(",", ":")).encode()
    return (header + binary, len(header)) if request.binary else (header, None)


def _classification(values: Sequence[float], labels: Sequence[str], count: int) -> list[str]:
    """`value:index:label`, best first, written like Triton does."""
    return [f"{values[index]:.6f}:{index}:{labels[index]}" for index in top_k(values, count)]
