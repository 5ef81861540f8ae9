"""The JSON of an inference request: models that read it, and the schema that is published.

InferenceMessage.model_validate_json(text)     # ValidationError
MESSAGE                                        # for OpenAPI
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from ...imaging.kinds import Kind

MAX_ID_CHARACTERS = 256  # the answer repeats the id

Size = Annotated[int, Field(ge=0, lt=1 << 63)]


def _plain(value: object) -> object:
    if value is not None and not isinstance(value, bool | int | float | str):
        raise PydanticCustomError("plain", "it must be a string, a number or a boolean")
    return value


Value = Annotated[Any, AfterValidator(_plain)]


class _Message(BaseModel):
    """Accepts members that the protocol does not define if their values are plain.

    So nothing is nested deeper than the protocol nests it, except `data`, which is checked when it is read.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Value]


class Parameters(_Message):
    """The parameters that have an effect here."""

    binary_data_size: Size | None = None
    binary_data_output: bool | None = None
    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=1)] | None = None
    kind: Kind | None = None
    shared_memory_region: Value = None


class InputTensor(_Message):
    name: str
    shape: list[Size] = Field(fail_fast=True)
    datatype: str
    parameters: Parameters | None = None
    data: list[Any] | None = None


class RequestedOutput(_Message):
    name: str
    parameters: Parameters | None = None


class InferenceMessage(_Message):
    id: Annotated[str, Field(max_length=MAX_ID_CHARACTERS)] | None = None
    parameters: Parameters | None = None
    inputs: list[InputTensor] = Field(fail_fast=True)
    outputs: list[RequestedOutput] | None = Field(None, fail_fast=True)


# Written by hand: it says what a client should send. A schema made from the models would say what is tolerated too
# (null for every member, and members of any name). A test compares the members of both.
INPUT = {
    "type": "object",
    "description": "A tensor. Its elements are in `data`, or in the `binary_data_size` bytes that follow the JSON.",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string", "examples": ["images"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "examples": [[1, 32, 32, 3]]},
        "datatype": {"type": "string", "enum": ["UINT8", "BYTES"]},
        "data": {"type": "array", "items": {}},
        "parameters": {"type": "object"},
    },
}
MESSAGE = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "maxLength": MAX_ID_CHARACTERS},
        "inputs": {"type": "array", "items": INPUT, "minItems": 1, "maxItems": 1},
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}, "maxItems": 1},
        "parameters": {"type": "object"},
    },
}
