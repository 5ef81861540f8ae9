"""How much a ModelInferRequest may hold, checked before it is parsed; and its tensors, which need no parsing.

    head, tensors = split(message)      # MalformedRequest
    ModelInferRequest.FromString(head)

Two bytes of a message can become an object of a hundred, and a byte a number of eight. The walk over the fields bounds
both. It takes their lengths alone, so it copies nothing.

A field is a tag, a varint of its number and its kind, and a value: https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ....errors import MalformedRequest

# Numbers of fields in the protocol's definition.
INPUTS, RAW_INPUT_CONTENTS = 5, 7  # of ModelInferRequest
CONTENTS = 5  # of InferInputTensor
BYTES_CONTENTS = 8  # of InferTensorContents

MAX_FIELDS = 1000
MAX_HEAD_BYTES = 64 * 1024  # names, shapes and parameters
MAX_NUMBERS_BYTES = 1 << 20  # numbers that are not raw: their parser holds the event loop for some 3 ms
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # kinds of values


@dataclass
class _Budget:
    fields: int = MAX_FIELDS
    head: int = MAX_HEAD_BYTES
    numbers: int = MAX_NUMBERS_BYTES

    def count(self) -> None:
        self.fields -= 1
        if self.fields < 0:
            raise MalformedRequest(f"the message has too many fields: at most {MAX_FIELDS} are accepted")

    def take_head(self, size: int) -> None:
        self.head -= size
        if self.head < 0:
            raise MalformedRequest(
                f"names, shapes and parameters have too many bytes: at most {MAX_HEAD_BYTES} are accepted"
            )

    def take_numbers(self, size: int) -> None:
        self.numbers -= size
        if self.numbers < 0:
            raise MalformedRequest(
                f"the numbers in `contents` have too many bytes: at most {MAX_NUMBERS_BYTES} are accepted;"
                " send them in `raw_input_contents`"
            )


@dataclass(frozen=True)
class _Field:
    number: int
    whole: memoryview
    value: memoryview | None  # None unless its kind is LENGTH


def split(message: bytes | bytearray) -> tuple[bytes, list[memoryview]]:
    """The message without `raw_input_contents`, and these tensors, as views of it. Raises MalformedRequest."""
    budget = _Budget()
    head: list[memoryview] = []
    tensors: list[memoryview] = []
    for field in _fields(memoryview(message), budget):
        if field.number == RAW_INPUT_CONTENTS and field.value is not None:
            tensors.append(field.value)
            continue
        head.append(field.whole)
        if field.number == INPUTS and field.value is not None:
            _check_input(field.value, budget)
        else:
            budget.take_head(len(field.whole))
    return b"".join(head), tensors


def _check_input(tensor: memoryview, budget: _Budget) -> None:
    for field in _fields(tensor, budget):
        if field.number != CONTENTS or field.value is None:
            budget.take_head(len(field.whole))
            continue
        for elements in _fields(field.value, budget):
            if elements.number != BYTES_CONTENTS:
                budget.take_numbers(len(elements.whole))


def _fields(data: memoryview, budget: _Budget) -> Iterator[_Field]:
    at = 0
    while at < len(data):
        budget.count()
        start = at
        tag, at = _varint(data, at)
        kind, value = tag & 7, None
        if kind == VARINT:
            _, at = _varint(data, at)
        elif kind == LENGTH:
            size, first = _varint(data, at)
            at = first + size
            value = data[first:at]
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            at += 8 if kind == EIGHT_BYTES else 4
        else:
            raise MalformedRequest("the message is not in the encoding of protobuf")
        if at > len(data):
            raise MalformedRequest("the message is cut short")
        yield _Field(tag >> 3, data[start:at], value)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    number = 0
    for index, byte in enumerate(data[at : at + 10]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, at + index + 1
    raise MalformedRequest("the message is cut short, or not in the encoding of protobuf")
