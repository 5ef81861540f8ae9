import base64
import json
import math

import pytest

from app.api.open_inference import json_limits
from app.api.open_inference.models import Tensor
from app.errors import MalformedRequest

MAX_IMAGES = 32
PIXELS = Tensor("images", "UINT8", (-1, 32, 32, 3))
FILES = Tensor("image", "BYTES", (-1,))
ELEMENTS = MAX_IMAGES * 32 * 32 * 3


def message(data: bytes) -> bytes:
    return b'{"inputs": [{"name": "a", "shape": [1], "datatype": "b", "data": [' + data + b"]}]}"


def refusal(text: bytes, tensor: Tensor) -> str:
    with pytest.raises(MalformedRequest) as caught:
        json_limits.check(text, tensor, MAX_IMAGES)
    return caught.value.detail


@pytest.mark.parametrize("indent", [None, 1, 2, 4])
@pytest.mark.parametrize("nested", [True, False])
def test_the_largest_request_passes_in_every_notation(indent: int | None, nested: bool) -> None:
    data = [[[[255] * 3] * 32] * 32] * MAX_IMAGES if nested else [255] * ELEMENTS
    tensor = {"name": "images", "shape": [MAX_IMAGES, 32, 32, 3], "datatype": "UINT8", "data": data}
    json_limits.check(json.dumps({"id": "9" * 256, "inputs": [tensor]}, indent=indent).encode(), PIXELS, MAX_IMAGES)


def test_files_pass_with_any_content_and_escaped_slashes() -> None:
    files = [bytes(range(256)) * 4000, b"\xdb\x6d\xb6" * 1000, b"\xff" * 1_000_000]
    text = json.dumps({"inputs": [{"data": [base64.b64encode(content).decode() for content in files]}]})
    json_limits.check(text.encode(), FILES, MAX_IMAGES)
    few_slashes = json.dumps({"inputs": [{"data": [base64.b64encode(files[0]).decode()]}]})
    json_limits.check(few_slashes.replace("/", r"\/").encode(), FILES, MAX_IMAGES)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b",".join([b"9" * 300] * 90_000), "bytes"),
        (b",".join([b"123456789"] * 90_000), "digits"),
        (b"1" * 1_000_000, "digits"),
        (b",".join([b"0." + b"1" * 30 + b"e-9"] * 90_000), "digits"),
        (b"1," * (ELEMENTS + 1000), "values"),
        (b'"\\u0000\\ud83d"' * 1000, "escapes"),
        (b"[" * 100_000, "lists"),
        (b"[[[[[[[]]]]]]]," * 10_000, "lists"),
        (b'{"a": 1},' * 1001, "members"),
        (b" " * 7_000_000, "bytes"),
        ("\u00e9".encode() * 4_000_000, "bytes"),
    ],
)
def test_pixels_beyond_a_limit_are_refused(data: bytes, reason: str) -> None:
    detail = refusal(message(data), PIXELS)
    assert reason in detail
    assert len(detail) < 250


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'"' + b"\\u0041" * 500_000 + b'"', "not base64"),
        (b'"' + b"\\/" * 500_000 + b'"', "not base64"),
        (b'"' + "\u00e9".encode() * 500_000 + b'"', "not base64"),
        (b" " * 500_000, "not base64"),
        (b'"\\/' + b"A" * (16 << 20) + b'"', "without escapes"),
        ('"\U0001f408'.encode() + b"A" * (16 << 20) + b'"', "ASCII"),
        (b"[" * 2000, "lists"),
        (b"1," * 2000, "values"),
        (b'{"a": 1},' * 1001, "members"),
    ],
)
def test_files_beyond_a_limit_are_refused(data: bytes, reason: str) -> None:
    detail = refusal(message(data), FILES)
    assert reason in detail
    assert len(detail) < 250


def test_each_refusal_names_the_limit() -> None:
    assert f"at most {ELEMENTS + 1000} are accepted" in refusal(message(b"1," * 200_000), PIXELS)
    lists = MAX_IMAGES * (1 + 32 + 32 * 32) + 1000
    assert f"at most {lists} are accepted" in refusal(message(b"[" * 200_000), PIXELS)


@pytest.mark.parametrize("options", [{}, {"indent": 4}, {"sort_keys": True}, {"separators": (",", ":")}])
@pytest.mark.parametrize(
    ("shape", "datatype"), [([1, 224, 224, 3], "UINT8"), ([1, 3, 224, 224], "FP32"), ([64, 32, 32, 3], "UINT8")]
)
def test_a_tensor_of_another_shape_is_named_beside_the_accepted_one(
    shape: list[int], datatype: str, options: dict
) -> None:
    values = [0.123456789] if datatype == "FP32" else [255]
    tensor = {"name": "images", "shape": shape, "datatype": datatype, "data": values * math.prod(shape)}
    text = json.dumps({"inputs": [tensor]}, **options).encode()
    for input, taken in ((PIXELS, "UINT8 [-1, 32, 32, 3]"), (FILES, "BYTES [-1]")):
        detail = refusal(text, input)
        assert f"; the input is {taken}, with up to 32 images; the message has {datatype} {shape}" in detail
