"""Inference requests and responses of the Open Inference Protocol: JSON, with the binary and classification extensions.

    request = parse(body, header_length, model)      # MalformedRequest, with what was expected
    len(request.images)                              # uint8 [N, 32, 32, 3], or N encoded files
    body, header_length = render(request, probabilities, model, request_id)

A message is JSON, and after it the tensors that are binary, in the order in which the JSON names them; the header
Inference-Header-Content-Length says where the JSON ends. Without that header all is JSON; with 0, the body is the
only input's bytes, one image, and the answer is binary ("raw request").
JSON has no bytes: a BYTES tensor of files in JSON holds them as base64.

An answer has at most a few kilobytes, whatever the request holds: a number or a label for each image and class, and
the request's id, whose length is limited.
"""

import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from pydantic import ValidationError

from ...errors import MalformedRequest
from ...imaging.decoder import Images
from ...inference.decisions import top_k
from ...validation import one_line
from . import json_limits
from .models import VERSION, ServedModel, Tensor
from .schema import InferenceMessage, InputTensor, Parameters

NONE = Parameters()
DECODED_AT_ONCE = 1 << 20  # characters of base64: about 4 ms, in which no other thread runs


@dataclass(frozen=True)
class InferenceRequest:
    """images: uint8 [N, height, width, 3] or N encoded files, N from 1 to the model's max_batch_size.

    classes: how many of the most probable classes to name; 0 asks for the probabilities of all.
    binary: whether the answer's tensor is binary.
    """

    id: str | None
    images: Images | list[bytes]
    classes: int
    binary: bool


def parse(body: bytearray, header_length: int | None, model: ServedModel) -> InferenceRequest:
    """The request in `body`, whose JSON has `header_length` bytes (None: all of it is JSON; 0: none of it is).

    Arrays are views of `body`. Raises MalformedRequest.
    """
    if header_length == 0:
        return InferenceRequest(None, _raw_image(body, model.input), classes=0, binary=True)
    length = len(body) if header_length is None else header_length
    if length > len(body):
        raise MalformedRequest(f"Inference-Header-Content-Length is {length}, but the body has {len(body)} bytes")
    message = _message(body if length == len(body) else body[:length], model)
    images = _images(message.inputs, memoryview(body)[length:], model)
    classes, binary = _wanted(message, model.output)
    return InferenceRequest(message.id, images, classes, binary)


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


def _message(text: bytearray, model: ServedModel) -> InferenceMessage:
    json_limits.check(text, model.input, model.max_batch_size)
    try:
        # Unlike Python's own, this parser bounds how deep it goes.
        return InferenceMessage.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[:1]
        raise MalformedRequest(one_line(first, "the message")) from None


def _images(inputs: list[InputTensor], rest: memoryview, model: ServedModel) -> Images | list[bytes]:
    expected = model.input
    names = [item.name for item in inputs]
    if names != [expected.name]:
        raise MalformedRequest(f"inputs: this model has one, {expected.name!r}, not {_say(names)}")
    (given,) = inputs
    if given.datatype != expected.datatype:
        raise MalformedRequest(
            f"input {given.name!r}: its datatype is {expected.datatype}, not {given.datatype[:40]!r}"
        )
    count = _count(given, model)
    parameters = given.parameters or NONE
    size = parameters.binary_data_size
    if parameters.shared_memory_region is not None:
        raise MalformedRequest(f"input {given.name!r}: shared memory is not supported: send the tensor")
    if (size is None) == (given.data is None):
        raise MalformedRequest(f"input {given.name!r}: give either `data` or the parameter `binary_data_size`")
    if size is not None and size > len(rest):
        raise MalformedRequest(
            f"input {given.name!r}: binary_data_size is {size}, but {len(rest)} bytes follow the JSON"
            " (Inference-Header-Content-Length says where it ends)"
        )
    if len(rest) > (size or 0):
        raise MalformedRequest(f"{len(rest) - (size or 0)} bytes are left over after the tensors")
    if given.data is not None:
        values = _flat(given.data, expected)
        return _base64_files(values, count) if expected.datatype == "BYTES" else _numbers(values, expected, count)
    return _binary_files(rest, count) if expected.datatype == "BYTES" else _pixels(rest, expected, count)


def _count(given: InputTensor, model: ServedModel) -> int:
    """The number of images, by the input's shape."""
    shape = model.input.shape
    if not given.shape or tuple(given.shape[1:]) != shape[1:]:
        raise MalformedRequest(f"input {given.name!r}: its shape is {list(shape)}, not {str(given.shape)[:80]}")
    if not 1 <= given.shape[0] <= model.max_batch_size:
        raise MalformedRequest(
            f"input {given.name!r}: a request has 1 to {model.max_batch_size} images, not {given.shape[0]}"
        )
    return given.shape[0]


def _wanted(message: InferenceMessage, output: Tensor) -> tuple[int, bool]:
    """How many classes to name, and whether in binary."""
    names = [item.name for item in message.outputs or []]
    if names not in ([], [output.name]):
        raise MalformedRequest(f"outputs: this model has one, {output.name!r}, not {_say(names)}")
    parameters = message.outputs[0].parameters or NONE if message.outputs else NONE
    if parameters.shared_memory_region is not None:
        raise MalformedRequest(f"output {output.name!r}: shared memory is not supported")
    binary = parameters.binary_data
    if binary is None:
        binary = (message.parameters or NONE).binary_data_output
    return parameters.classification or 0, bool(binary)


def _raw_image(body: bytearray, tensor: Tensor) -> Images | list[bytes]:
    if tensor.datatype == "BYTES":
        return [bytes(body)]
    return _pixels(memoryview(body), tensor, 1)


def _pixels(data: memoryview, tensor: Tensor, count: int) -> Images:
    shape = (count, *tensor.shape[1:])
    if len(data) != count * _elements(tensor):
        raise MalformedRequest(
            f"input {tensor.name!r}: {list(shape)} is {count * _elements(tensor)} bytes, not {len(data)}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _binary_files(data: memoryview, count: int) -> list[bytes]:
    """Elements that each follow their length in bytes (uint32, little-endian)."""
    files: list[bytes] = []
    start = 0
    for _ in range(count):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if end > len(data) or start + 4 > len(data):
            raise MalformedRequest(f"the tensor ends within element {len(files)} of {count}")
        files.append(bytes(data[start + 4 : end]))
        start = end
    if start != len(data):
        raise MalformedRequest(f"{len(data) - start} bytes are left over after {count} elements")
    return files


def _flat(data: list[Any], tensor: Tensor) -> list[Any]:
    """The elements of `data`, row by row, whether `data` is flat or nested (at most as deep as the tensor)."""
    for _ in tensor.shape[1:]:
        if not all(isinstance(item, list) for item in data):
            break
        data = list(chain.from_iterable(data))
    return data


def _numbers(values: list[Any], tensor: Tensor, count: int) -> Images:
    if set(map(type, values)) != {int}:  # exactly: a bool is an int, too
        raise MalformedRequest(f"input {tensor.name!r}: `data` is whole numbers, flat or nested like the shape")
    try:
        data = bytearray(values)
    except ValueError:
        raise MalformedRequest(f"input {tensor.name!r}: UINT8 is from 0 to 255") from None
    return _pixels(memoryview(data), tensor, count)


def _base64_files(values: list[Any], count: int) -> list[bytes]:
    if len(values) != count:
        raise MalformedRequest(f"`data` has {len(values)} elements, the shape says {count}")
    try:
        return [_base64(value) for value in values]
    except (TypeError, ValueError):
        raise MalformedRequest(
            "`data` is strings: each a file in base64 (bytes as they are go into a binary tensor)"
        ) from None


def _base64(text: str) -> bytes:
    """The bytes of a text in base64 (RFC 4648, padded), decoded in steps. Raises TypeError or ValueError."""
    if not isinstance(text, str):
        raise TypeError
    last = (len(text) - 1) // DECODED_AT_ONCE * DECODED_AT_ONCE
    if last > 0 and text.count("=", 0, last):  # padding is for the end alone
        raise ValueError
    steps = (text[start : start + DECODED_AT_ONCE] for start in range(0, len(text), DECODED_AT_ONCE))
    return b"".join(binascii.a2b_base64(step, strict_mode=True) for step in steps)


def _elements(tensor: Tensor) -> int:
    """Elements of one image."""
    return int(np.prod(tensor.shape[1:]))


def _classification(values: Sequence[float], labels: Sequence[str], count: int) -> list[str]:
    """`value:index:label`, best first, written like Triton does."""
    return [f"{values[index]:.6f}:{index}:{labels[index]}" for index in top_k(values, count)]


def _say(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if names[3:] else "") or "none"
