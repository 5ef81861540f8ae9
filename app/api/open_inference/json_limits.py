"""How much the JSON of a request may hold, checked before it is parsed.

The parser can make an object of fifty bytes from two bytes of JSON, and long numbers take it a time that grows with the
square of their length. The checks bound both. They count single bytes, which takes a small part of the time of parsing.
"""

import math
import re

from ...errors import MalformedRequest
from .tensors import Tensor

OTHER_VALUES = 1000  # values beside a tensor's elements: names, shapes and parameters
# An element and its comma take 4 bytes; nested, and indented by four spaces, about 50.
BYTES_PER_VALUE = 64
DIGITS_PER_VALUE = 8  # the parser makes numbers of any length, in a time that grows with its square
# Files are strings in base64. Any other byte, an escape above all, takes up to ten times as long to parse. PHP escapes
# each slash, on average one character of 64.
BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
BASE64_BYTES_PER_OTHER = 32
# A string with an escape takes three times as long, one with a character beyond ASCII is up to four times as large:
# only texts up to this length may hold either. It leaves room for a file of 10 MiB.
MAX_ESCAPED_BYTES = 16 << 20
STEP_BYTES = 1 << 20  # looked at in one call, so that a message with too many is refused after its first part
# Where a message names its tensor: before the elements, or after them if the members are sorted.
EDGE_BYTES = 1 << 16
DATATYPE = re.compile(rb'"datatype"\s{0,99}:\s{0,99}"(\w{1,20})"')
SHAPE = re.compile(rb'"shape"\s{0,99}:\s{0,99}\[([\d,\s]{1,300})\]')


def check(text: bytes | bytearray, tensor: Tensor, max_images: int) -> None:
    """Raises MalformedRequest if `text` holds more than a request of `max_images` images has a use for.

    Bounded are its bytes, its values, members, lists and escapes, and the digits of all numbers together.
    """
    try:
        _check(text, tensor, max_images)
    except MalformedRequest as refused:
        raise MalformedRequest(
            f"{refused.detail}; the input is {tensor.datatype} {list(tensor.shape)}, with up to {max_images} images"
            + _named(text)
        ) from None


def _named(text: bytes | bytearray) -> str:
    """What the text says that it holds, for people; nothing if that is not found."""
    edges = text[:EDGE_BYTES] + text[EDGE_BYTES:][-EDGE_BYTES:]
    datatype, shape = DATATYPE.search(edges), SHAPE.search(edges)
    if not shape:
        return ""
    sizes = ", ".join(size.strip().decode() for size in shape[1].split(b","))
    return f"; the message has {datatype[1].decode() if datatype else 'a tensor of'} [{sizes[:80]}]"


def _check(text: bytes | bytearray, tensor: Tensor, max_images: int) -> None:
    structure: bytes | bytearray
    values = max_images * math.prod(tensor.shape[1:]) + OTHER_VALUES
    if tensor.datatype == "BYTES":
        structure = _not_base64(text, BYTES_PER_VALUE * values + len(text) // BASE64_BYTES_PER_OTHER)
        if len(text) > MAX_ESCAPED_BYTES and (b"\\" in structure or not structure.isascii()):
            raise MalformedRequest(f"JSON of more than {MAX_ESCAPED_BYTES} bytes must be ASCII without escapes")
    else:
        structure = text
        _at_most(BYTES_PER_VALUE * values, len(text), "bytes (a binary tensor takes fewer)")
        _at_most(OTHER_VALUES, text.count(b"\\"), "escapes")
        _at_most(DIGITS_PER_VALUE * values, len(text) - len(text.translate(None, b"0123456789")), "digits")
    _at_most(values, structure.count(b","), "values")
    _at_most(OTHER_VALUES, structure.count(b":"), "members")
    _at_most(OTHER_VALUES + max_images * _lists(tensor), structure.count(b"["), "lists")


def _not_base64(text: bytes | bytearray, most: int) -> bytearray:
    """The bytes of `text` outside the alphabet of base64."""
    found = bytearray()
    for start in range(0, len(text), STEP_BYTES):
        found += text[start : start + STEP_BYTES].translate(None, BASE64)
        _at_most(most, len(found), "bytes that are not base64")
    return found


def _at_most(most: int, found: int, what: str) -> None:
    if found > most:
        raise MalformedRequest(f"the JSON has too many {what}: at most {most} are accepted")


def _lists(tensor: Tensor) -> int:
    """Lists that hold one image's elements, nested like the tensor's shape."""
    return sum(math.prod(tensor.shape[1:end]) for end in range(1, len(tensor.shape)))
