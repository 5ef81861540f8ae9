"""The messages of the six calls, read and formed. The checks of what they ask for are those of /v2 over HTTP.

    asked = read(ModelInferRequest, head)                      # MalformedRequest
    request = await inference_request(asked, tensors, model)
    content = inference_response(request, output, trust, model, request_id)

A tensor's elements are raw bytes beside the inputs, or typed numbers or files inside its input. The answer has the form
that the request has.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from pydantic import ValidationError

from ....errors import MalformedRequest
from ..models import VERSION, ServedModel
from ..requests import (
    Images,
    InferenceRequest,
    binary_files,
    binary_pixels,
    elements_of,
    only_input,
    wanted,
    wanted_kind,
    why_invalid,
)
from ..responses import Output
from ..schema import InferenceMessage
from ..tensors import Signature
from .grpc_predict_v2_pb2 import InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse

STEP_NUMBERS = 1 << 14  # made bytes in one go, which takes the event loop less than a millisecond
TYPED = {"UINT8": "uint_contents", "BYTES": "bytes_contents"}  # where a tensor's typed elements are

Kind = TypeVar("Kind", bound=Message)


def read(kind: type[Kind], content: bytes) -> Kind:
    """Raises MalformedRequest."""
    try:
        message: Kind = kind.FromString(content)
    except DecodeError:
        raise MalformedRequest(f"the message is no {kind.DESCRIPTOR.full_name}") from None
    return message


async def inference_request(asked: ModelInferRequest, tensors: list[memoryview], model: Signature) -> InferenceRequest:
    """What the message asks for. `tensors` are its `raw_input_contents`; pixels are a view of them.

    Raises MalformedRequest.
    """
    message = _checked(asked)
    given, count = only_input(message, model)
    classes, _ = wanted(message, model.output)
    contents = asked.inputs[0].contents if asked.inputs[0].HasField("contents") else None
    if (contents is None) != bool(tensors):
        raise MalformedRequest(f"input {given.name!r}: give either `contents` or `raw_input_contents`")
    images: Images | list[bytes]
    if contents is not None:
        images = await _typed(contents, count, model)
    elif len(tensors) > 1:
        raise MalformedRequest(f"`raw_input_contents` has {len(tensors)} tensors, and there is one input")
    elif model.input.datatype == "BYTES":
        images = binary_files(tensors[0], count)
    else:
        images = binary_pixels(tensors[0], model.input, count)
    return InferenceRequest(asked.id or None, images, classes, contents is None, wanted_kind(message, model))


def inference_response(
    request: InferenceRequest, output: Output, trust: Mapping[str, str], model: ServedModel, request_id: str
) -> bytes:
    """A ModelInferResponse. `request_id` is used if the request has no id."""
    response = ModelInferResponse(
        model_name=model.name,
        model_version=VERSION,
        id=request_id if request.id is None else request.id,
        parameters={name: InferParameter(string_param=text) for name, text in trust.items()},
    )
    formed = response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
    if request.binary:
        response.raw_output_contents.append(output.binary)
    elif output.datatype == "BYTES":
        formed.contents.bytes_contents.extend(str(text).encode() for text in output.elements)
    else:
        formed.contents.fp32_contents.extend(output.elements)
    content: bytes = response.SerializeToString()
    return content


def _checked(asked: ModelInferRequest) -> InferenceMessage:
    """The message as HTTP would have it, without its tensors' elements."""
    fields = {
        "id": asked.id,
        "parameters": _values(asked.parameters),
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": _values(tensor.parameters),
            }
            for tensor in asked.inputs
        ],
        "outputs": [{"name": output.name, "parameters": _values(output.parameters)} for output in asked.outputs],
    }
    try:
        return InferenceMessage.model_validate(fields)
    except ValidationError as error:
        raise MalformedRequest(why_invalid(error)) from None


def _values(parameters: Mapping[str, InferParameter]) -> dict[str, Any]:
    choices = {name: (value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}
    return {name: getattr(value, choice) for name, (value, choice) in choices.items() if choice}


async def _typed(contents: InferTensorContents, count: int, model: Signature) -> Images | list[bytes]:
    tensor = model.input
    place = TYPED[tensor.datatype]
    others = [field.name for field, _ in contents.ListFields() if field.name != place]
    if others:
        raise MalformedRequest(
            f"input {tensor.name!r}: the elements of {tensor.datatype} are in `{place}`, not in `{others[0]}`"
        )
    expected = count if tensor.datatype == "BYTES" else count * elements_of(tensor)
    given = getattr(contents, place)
    if len(given) != expected:
        raise MalformedRequest(f"input {tensor.name!r}: `{place}` has {len(given)} elements, the shape says {expected}")
    if tensor.datatype == "BYTES":
        return list(given)
    pixels = bytearray()
    try:
        for start in range(0, expected, STEP_NUMBERS):
            pixels += bytes(given[start : start + STEP_NUMBERS])
            await asyncio.sleep(0)  # let others have their turn
    except ValueError:
        raise MalformedRequest(f"input {tensor.name!r}: UINT8 is from 0 to 255") from None
    return binary_pixels(memoryview(pixels), tensor, count)
