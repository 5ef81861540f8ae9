"""Inference responses of the Open Inference Protocol.

    output = output_of(request, results, model)              # the same over HTTP and gRPC
    trust = trust_of(results)
    body, header_length = render(request, output, trust, model, request_id)       # JSON, and binary after it

An answer has at most a number or a label for each image and class, a prediction set for each image, and the request's
id, whose length is limited.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...inference.answers import Classification
from ...inference.decisions import top_k
from .models import VERSION, ServedModel
from .requests import InferenceRequest


@dataclass(frozen=True)
class Output:
    """The model's output for a request: `elements`, row by row, and the same in the protocol's binary form."""

    name: str
    datatype: str
    shape: tuple[int, int]
    elements: list[float] | list[str]
    binary: bytes


def output_of(request: InferenceRequest, probabilities: Sequence[Sequence[float]], model: ServedModel) -> Output:
    """The probabilities, or where the request asks for it the best classes by name.

    `probabilities` are float64 [classes] of each image.
    """
    name = model.output.name
    if request.classes:
        texts = [text for values in probabilities for text in _classification(values, model.labels, request.classes)]
        shape = len(probabilities), min(request.classes, len(model.labels))
        binary = b"".join(len(item).to_bytes(4, "little") + item for item in (text.encode() for text in texts))
        return Output(name, "BYTES", shape, texts, binary)
    values = np.stack(probabilities).astype("<f4")
    return Output(name, model.output.datatype, values.shape, values.ravel().tolist(), values.tobytes())


def trust_of(results: Sequence[Classification]) -> dict[str, str]:
    """How far to trust the images' probabilities, as parameters: each is a JSON list with an element for each image.

    The elements are those of /predict: objects, true or false, numbers, texts, or null. What the bundle provides for
    no image is left out. Parameters, since many clients expect exactly one output; texts, since the protocol has no
    lists there.
    """
    answers = [result.answer(top_k=0) for result in results]
    columns: dict[str, list[Any]] = {
        "prediction_set": [answer.prediction_set and answer.prediction_set.model_dump() for answer in answers],
        "abstain": [answer.abstain for answer in answers],
        "ood_score": [answer.ood_score for answer in answers],
        "measured_on": [answer.measured_on for answer in answers],
    }
    return {name: _json(values) for name, values in columns.items() if any(value is not None for value in values)}


def render(
    request: InferenceRequest, output: Output, trust: dict[str, str], model: ServedModel, request_id: str
) -> tuple[bytes, int | None]:
    """The body of an answer over HTTP, and the length of its JSON if something binary follows that.

    `request_id` is used if the request has no id.
    """
    document = {
        "model_name": model.name,
        "model_version": VERSION,
        "id": request_id if request.id is None else request.id,
        **({"parameters": trust} if trust else {}),
        "outputs": [
            {
                "name": output.name,
                "datatype": output.datatype,
                "shape": output.shape,
                **(
                    {"parameters": {"binary_data_size": len(output.binary)}}
                    if request.binary
                    else {"data": output.elements}
                ),
            }
        ],
    }
    header = _json(document).encode()
    return (header + output.binary, len(header)) if request.binary else (header, None)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _classification(values: Sequence[float], labels: Sequence[str], count: int) -> list[str]:
    """`value:index:label`, best first, written like Triton does."""
    return [f"{values[index]:.6f}:{index}:{labels[index]}" for index in top_k(values, count)]
