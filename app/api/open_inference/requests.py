"""Inference requests of the Open Inference Protocol: JSON, with the binary and classification extensions.

    request = parse(body, header_length, model)      # MalformedRequest, with what was expected
    len(request.images)                              # uint8 [N, 32, 32, 3], or N encoded files

A message is JSON, and after it the tensors that are binary, in the order in which the JSON names them; the header
Inference-Header-Content-Length says where the JSON ends. Without that header all is JSON; with 0, the body is the
only input's bytes, one image, and the answer is binary ("raw request").
JSON has no bytes: a BYTES tensor of files in JSON holds them as base64.

The steps of `parse` are functions, too: app.api.open_inference.parser takes one of them in another process, and
app.api.open_inference.rpc those that do not depend on JSON.
"""

import binascii
import codecs
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ...errors import MalformedRequest
from ...imaging.kinds import Kind
from ...validation_errors import one_line
from . import json_limits
from .schema import InferenceMessage, InputTensor, Parameters
from .tensors import Signature, Tensor

Images = NDArray[np.uint8]
NONE = Parameters()
LINE_BREAKS = "base64 goes without line breaks and spaces, as from base64 -w 0"
DECODED_AT_ONCE = 1 << 20  # characters of base64: about 4 ms, in which no other thread runs


@dataclass(frozen=True)
class InferenceRequest:
    """images: uint8 [N, height, width, 3] or N encoded files, N from 1 to the model's max_batch_size.

    classes: how many of the most probable classes to name; 0 asks for the probabilities of all.
    binary: whether the answer's tensor is binary. kind: what the images are to be treated as; None: what they are.
    """

    id: str | None
    images: Images | list[bytes]
    classes: int
    binary: bool
    kind: Kind | None = None


@dataclass(frozen=True)
class Message:
    """The JSON of a request. images: None if they are in the binary tensor after the JSON."""

    id: str | None
    count: int
    classes: int
    binary: bool
    kind: Kind | None
    images: Images | list[bytes] | None


def parse(body: bytearray, header_length: int | None, model: Signature) -> InferenceRequest:
    """The request in `body`, whose JSON has `header_length` bytes (None: all of it is JSON; 0: none of it is).

    Arrays are views of `body`. Raises MalformedRequest.
    """
    if header_length == 0:
        return raw_request(body, model)
    text, tail = split(body, header_length)
    return with_tail(read_json(bytes(text), len(tail), model), tail, model)


def split(body: bytearray, header_length: int | None) -> tuple[memoryview, memoryview]:
    """The JSON and what follows it. Raises MalformedRequest."""
    length = len(body) if header_length is None else header_length
    if length > len(body):
        raise MalformedRequest(f"Inference-Header-Content-Length is {length}, but the body has {len(body)} bytes")
    view = memoryview(body)
    return view[:length], view[length:]


def raw_request(body: bytearray, model: Signature) -> InferenceRequest:
    """The request whose body is one image. Raises MalformedRequest."""
    tensor = model.input
    images = [bytes(body)] if tensor.datatype == "BYTES" else binary_pixels(memoryview(body), tensor, 1)
    return InferenceRequest(None, images, classes=0, binary=True)


def read_json(text: bytes | bytearray, rest: int, model: Signature) -> Message:
    """The message in `text`, which `rest` bytes follow. Raises MalformedRequest."""
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise MalformedRequest("the JSON is UTF-16: send it as UTF-8")
    text = text.removeprefix(codecs.BOM_UTF8)
    json_limits.check(text, model.input, model.max_batch_size)
    try:
        # Unlike Python's own, this parser bounds how deep it goes.
        message = InferenceMessage.model_validate_json(text)
    except ValidationError as error:
        reason = why_invalid(error)
        if model.input.datatype == "BYTES" and "control character" in reason:
            reason += f" ({LINE_BREAKS})"
        raise MalformedRequest(reason) from None
    given, count = only_input(message, model)
    data = given.data
    _check_place(given, rest)
    classes, binary = wanted(message, model.output)
    images = None if data is None else _images(data, model.input, count)
    return Message(message.id, count, classes, binary, wanted_kind(message, model), images)


def with_tail(message: Message, tail: memoryview, model: Signature) -> InferenceRequest:
    """The request whose JSON is `message` and whose binary tensor is `tail`. Raises MalformedRequest."""
    images = message.images
    if images is None and model.input.datatype == "BYTES":
        images = binary_files(tail, message.count)
    elif images is None:
        images = binary_pixels(tail, model.input, message.count)
    return InferenceRequest(message.id, images, message.classes, message.binary, message.kind)


def why_invalid(error: ValidationError) -> str:
    """What is wrong with a message, on one line."""
    return one_line(error.errors(include_url=False, include_input=False)[:1], "the message")


def only_input(message: InferenceMessage, model: Signature) -> tuple[InputTensor, int]:
    """The message's input and its number of images, by its shape. Raises MalformedRequest."""
    expected = model.input
    names = [item.name for item in message.inputs]
    if names != [expected.name]:
        raise MalformedRequest(f"inputs: this model has one, {expected.name!r}, not {_say(names)}")
    (given,) = message.inputs
    if given.datatype != expected.datatype:
        raise MalformedRequest(
            f"input {given.name!r}: its datatype is {expected.datatype}, not {given.datatype[:40]!r}"
        )
    if (given.parameters or NONE).shared_memory_region is not None:
        raise MalformedRequest(f"input {given.name!r}: shared memory is not supported: send the tensor")
    return given, _count(given, model)


def _check_place(given: InputTensor, rest: int) -> None:
    """The elements are either in `data`, or they are the `rest` bytes after the JSON."""
    size = (given.parameters or NONE).binary_data_size
    if (size is None) == (given.data is None):
        raise MalformedRequest(f"input {given.name!r}: give either `data` or the parameter `binary_data_size`")
    if size is not None and size > rest:
        raise MalformedRequest(
            f"input {given.name!r}: binary_data_size is {size}, but {rest} bytes follow the JSON"
            " (Inference-Header-Content-Length says where it ends)"
        )
    if rest > (size or 0):
        raise MalformedRequest(f"{rest - (size or 0)} bytes are left over after the tensors")


def _images(data: list[Any], expected: Tensor, count: int) -> Images | list[bytes]:
    values = _flat(data, expected)
    return _base64_files(values, count) if expected.datatype == "BYTES" else _numbers(values, expected, count)


def _count(given: InputTensor, model: Signature) -> int:
    """The number of images, by the input's shape."""
    shape = model.input.shape
    if not given.shape or tuple(given.shape[1:]) != shape[1:]:
        raise MalformedRequest(
            f"input {given.name!r}: its shape is {list(shape)} with 1 to {model.max_batch_size} images,"
            f" not {str(given.shape)[:80]}"
        )
    if not 1 <= given.shape[0] <= model.max_batch_size:
        raise MalformedRequest(
            f"input {given.name!r}: a request has 1 to {model.max_batch_size} images, not {given.shape[0]}"
        )
    return given.shape[0]


def wanted(message: InferenceMessage, output: Tensor) -> tuple[int, bool]:
    """How many classes to name, and whether in binary. Raises MalformedRequest."""
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


def wanted_kind(message: InferenceMessage, model: Signature) -> Kind | None:
    """What the images are to be treated as, by the parameter `kind` of the input or the request.

    Raises MalformedRequest.
    """
    kind = (message.inputs[0].parameters or NONE).kind or (message.parameters or NONE).kind
    if kind == "photographs" and model.input.datatype != "BYTES":
        raise MalformedRequest("parameters.kind: pixels are thumbnails; the model of files takes photographs")
    return kind


def binary_pixels(data: memoryview, tensor: Tensor, count: int) -> Images:
    """The pixels of `count` images, as a view of `data`. Raises MalformedRequest."""
    shape = (count, *tensor.shape[1:])
    if len(data) != count * elements_of(tensor):
        raise MalformedRequest(
            f"input {tensor.name!r}: {list(shape)} is {count * elements_of(tensor)} bytes, not {len(data)}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def binary_files(data: memoryview, count: int) -> list[bytes]:
    """Elements that each follow their length in bytes (uint32, little-endian). Raises MalformedRequest."""
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
    return binary_pixels(memoryview(data), tensor, count)


def _base64_files(values: list[Any], count: int) -> list[bytes]:
    if len(values) != count:
        raise MalformedRequest(f"`data` has {len(values)} elements, the shape says {count}")
    files = []
    for index, value in enumerate(values):
        try:
            files.append(_base64(value))
        except (TypeError, ValueError):
            raise MalformedRequest(f"`data`, element {index}: {_why_no_base64(value)}") from None
    return files


def _why_no_base64(value: Any) -> str:
    if not isinstance(value, str):
        return "a file in base64 is a string (bytes as they are go into a binary tensor)"
    if value.startswith("data:"):
        return "this is a data URI: send only the base64 after its comma"
    if any(space in value for space in "\n\r\t "):
        return LINE_BREAKS
    if "-" in value or "_" in value:
        return "this is base64 for URLs: use + and / instead of - and _"
    if len(value) % 4:
        return "the base64 is cut short, or lacks the = at its end: its length is no multiple of 4"
    return "this is no base64 (bytes as they are go into a binary tensor)"


def _base64(text: str) -> bytes:
    """The bytes of a text in base64 (RFC 4648, padded), decoded in steps. Raises TypeError or ValueError."""
    if not isinstance(text, str):
        raise TypeError
    last = (len(text) - 1) // DECODED_AT_ONCE * DECODED_AT_ONCE
    if last > 0 and text.count("=", 0, last):  # padding is for the end alone
        raise ValueError
    steps = (text[start : start + DECODED_AT_ONCE] for start in range(0, len(text), DECODED_AT_ONCE))
    return b"".join(binascii.a2b_base64(step, strict_mode=True) for step in steps)


def elements_of(tensor: Tensor) -> int:
    """Elements of one image."""
    return int(np.prod(tensor.shape[1:]))


def _say(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if names[3:] else "") or "none"
