import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.open_inference.rpc.grpc_predict_v2_pb2 import InferTensorContents, ModelInferRequest
from app.api.open_inference.rpc.wire import MAX_FIELDS, split
from app.errors import MalformedRequest


@settings(max_examples=50)
@given(
    st.lists(st.binary(max_size=300), max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8),
    st.lists(st.integers(0, 2**32 - 1), max_size=50),
    st.lists(st.binary(max_size=300), max_size=5),
    st.text(max_size=30),
)
def test_the_head_and_the_tensors_are_the_message(
    raw: list[bytes], shape: list[int], numbers: list[int], files: list[bytes], text: str
) -> None:
    request = ModelInferRequest(model_name=text, id=text, raw_input_contents=raw)
    contents = InferTensorContents(uint_contents=numbers, bytes_contents=files)
    request.inputs.add(name=text, datatype="UINT8", shape=shape, contents=contents).parameters[text].bool_param = True
    request.outputs.add(name=text).parameters[text].double_param = 0.5
    head, tensors = split(bytearray(request.SerializeToString()))
    assert [bytes(tensor) for tensor in tensors] == raw
    del request.raw_input_contents[:]
    assert ModelInferRequest.FromString(head) == request


@given(st.binary(max_size=60))
def test_any_bytes_are_split_or_refused(message: bytes) -> None:
    try:
        head, tensors = split(message)
    except MalformedRequest:
        return
    assert len(head) + sum(map(len, tensors)) <= len(message)


@pytest.mark.parametrize(
    "message",
    [
        b"\x3a\x00" * (MAX_FIELDS + 1),  # tensors
        b"\x2a\x02\x2a\x00" * MAX_FIELDS,  # inputs, each with contents
        b"\x2a\xe0\xd4\x03\x2a\xdc\xd4\x03" + b"\x42\x00" * 30_000,  # files
        b"\x2a" + bytes([0x80 | 0x7F] * 9 + [0x7F]),  # a length beyond any
        b"\x0b" * 10,  # a group
        b"\x08",  # a number that is missing
        b"\x09\x00",  # eight bytes that are not there
    ],
)
def test_what_would_grow_when_it_is_parsed_or_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(MalformedRequest):
        split(message)
