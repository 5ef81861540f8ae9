"""How much the JSON of a request may hold, checked before it is parsed.

The parser keeps Python's global interpreter lock from the first byte to the last, so that probes wait for it, and it
can make an object of fifty bytes from two bytes of JSON. These checks bound both: they look for single bytes, and
take a small part of the time that parsing takes. JSON that is too large is refused in less than 50 ms.
"""

import math

from ...errors import MalformedRequest
from .models import Tensor

OTHER_VALUES = 1000  # values beside a tensor's elements: names, shapes and parameters
MAX_DIGITS = 256  # of a number; the time to read one grows with their square
# An element of a tensor and its comma take 4 bytes, nested and indented by four spaces about 50.
BYTES_PER_VALUE = 64
# Files are strings in base64. Any other byte in one, an escape above all, takes ten times as long to read. PHP escapes
# each slash, on average one character of 64.
BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
BASE64_BYTES_PER_OTHER = 32

_ZERO_FOR_DIGITS = bytes(ord("0") if chr(byte).isdecimal() and byte < 128 else ord(" ") for byte in range(256))


def check(text: bytes | bytearray, tensor: Tensor, max_images: int) -> None:
    """Raises MalformedRequest if `text` holds more than a request of `max_images` images has a use for.

    Bounded are its bytes, its values, lists, objects and escapes, and the digits of its numbers.
    """
    values = max_images * math.prod(tensor.shape[1:]) + OTHER_VALUES
    if tensor.datatype == "BYTES":
        structure = text.translate(None, BASE64)
        most = BYTES_PER_VALUE * values + len(text) // BASE64_BYTES_PER_OTHER
        _at_most(most, len(structure), "bytes that are not base64")
    else:
        structure = text
        _at_most(BYTES_PER_VALUE * values, len(text), "bytes (binary tensors may be larger)")
        _at_most(OTHER_VALUES, text.count(b"\\"), "escapes")
        if b"0" * (MAX_DIGITS + 1) in text.translate(_ZERO_FOR_DIGITS):
            raise MalformedRequest(f"a number in the JSON has more than {MAX_DIGITS} digits")
    _at_most(values, structure.count(b","), "values")
    _at_most(OTHER_VALUES, structure.count(b":"), "members")
    _at_most(OTHER_VALUES + max_images * _lists(tensor), structure.count(b"["), "lists")


def _at_most(most: int, found: int, what: str) -> None:
    if found > most:
        raise MalformedRequest(f"the JSON has {found} {what}, at most {most} are accepted")


def _lists(tensor: Tensor) -> int:
    """Lists that hold one image's elements, nested like the tensor's shape."""
    return sum(math.prod(tensor.shape[1:end]) for end in range(1, len(tensor.shape)))
