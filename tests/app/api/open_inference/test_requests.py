import base64
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.open_inference.models import ServedModel
from app.api.open_inference.requests import DECODED_AT_ONCE, InferenceRequest, parse
from app.api.open_inference.responses import output_of, render
from app.api.uploads import MAX_IMAGES
from app.errors import MalformedRequest

IMAGE = 32 * 32 * 3


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def tensor(count: object = 1, **changes: object) -> dict:
    return {"name": "images", "shape": [count, 32, 32, 3], "datatype": "UINT8", **changes}


def file_tensor(count: int = 1, **changes: object) -> dict:
    return {"name": "image", "shape": [count], "datatype": "BYTES", **changes}


def binary(size: int) -> dict:
    return {"parameters": {"binary_data_size": size}}


def message(inputs: object, tail: bytes = b"", **members: object) -> tuple[bytearray, int | None]:
    text = json.dumps({"inputs": inputs, **members}).encode()
    return bytearray(text + tail), len(text) if tail else None


def elements(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def refusal(model: ServedModel, body: bytes, header_length: int | None = None) -> str:
    with pytest.raises(MalformedRequest) as caught:
        parse(bytearray(body), header_length, model)
    return caught.value.detail


class TestPixels:
    @pytest.mark.parametrize("count", [1, 2, MAX_IMAGES])
    def test_flat_nested_and_binary_data_are_equivalent(self, pixels: ServedModel, count: int) -> None:
        sent = images(count)
        nested = message([tensor(count, data=sent.tolist())])
        flat = message([tensor(count, data=sent.ravel().tolist())])
        packed = message([tensor(count, **binary(sent.size))], sent.tobytes())
        for body, length in (nested, flat, packed):
            read = parse(body, length, pixels).images
            assert isinstance(read, np.ndarray)
            assert read.dtype == np.uint8
            assert read.flags.c_contiguous and read.flags.writeable
            np.testing.assert_array_equal(read, sent)

    def test_a_raw_request_is_one_image(self, pixels: ServedModel) -> None:
        request = parse(bytearray(images(1).tobytes()), 0, pixels)
        np.testing.assert_array_equal(request.images, images(1))
        assert request == InferenceRequest(None, request.images, classes=0, binary=True)
        for size in (0, 1, IMAGE - 1, IMAGE + 1, 2 * IMAGE):
            assert "[1, 32, 32, 3]" in refusal(pixels, bytes(size), 0)

    @pytest.mark.parametrize(
        "shape",
        [
            [],
            [1],
            [32, 32, 3],
            [1, 3, 32, 32],
            [1, 32, 32, 3, 1],
            [0, 32, 32, 3],
            [MAX_IMAGES + 1, 32, 32, 3],
            [-1, 32, 32, 3],
            [1, -32, -32, 3],
            [16, (1 << 60) + 2],
            [1 << 62, 32, 32, 3],
            [1 << 63, 32, 32, 3],
            [1 << 64, 32, 32, 3],
            [10**400, 32, 32, 3],
            [1.0, 32, 32, 3],
            [True, 32, 32, 3],
            ["1", 32, 32, 3],
            [None, 32, 32, 3],
            [[1], 32, 32, 3],
            [0] * 90_000,
            "1,32,32,3",
            None,
            {},
            1,
        ],
    )
    @pytest.mark.parametrize("tail", [b"", bytes(IMAGE)])
    def test_invalid_shapes_are_refused(self, pixels: ServedModel, shape: object, tail: bytes) -> None:
        data = binary(IMAGE) if tail else {"data": [0] * IMAGE}
        detail = refusal(pixels, *message([tensor(shape=shape, **data)], tail))
        assert len(detail) < 300

    @pytest.mark.parametrize(
        "data",
        [
            [],
            [0] * (IMAGE - 1),
            [0] * (IMAGE + 1),
            [0] * (IMAGE - 1) + [256],
            [0] * (IMAGE - 1) + [-1],
            [0] * (IMAGE - 1) + [10**300],
            [0] * (IMAGE - 1) + [1.0],
            [0] * (IMAGE - 1) + [True],
            [0] * (IMAGE - 1) + ["0"],
            [0] * (IMAGE - 1) + [None],
            [0] * (IMAGE - 1) + [[0]],
            [[[[[0] * 3] * 32] * 32]],
            [[]] * IMAGE,
            [{}] * IMAGE,
            "0" * IMAGE,
            {},
            0,
            None,
        ],
    )
    def test_data_that_is_no_image_is_refused(self, pixels: ServedModel, data: object) -> None:
        refusal(pixels, *message([tensor(data=data)]))

    @pytest.mark.parametrize("datatype", ["FP32", "INT8", "BYTES", "uint8", "", "x" * 10_000, None, 8])
    def test_other_datatypes_are_refused(self, pixels: ServedModel, datatype: object) -> None:
        assert len(refusal(pixels, *message([tensor(datatype=datatype, data=[0] * IMAGE)]))) < 200


class TestFiles:
    def test_binary_and_base64_data_are_equivalent(self, files: ServedModel) -> None:
        sent = [b"one", b"", b"\x89PNG\r\n"]
        tail = elements(*sent)
        encoded = [base64.b64encode(item).decode() for item in sent]
        for body, length in (
            message([file_tensor(3, **binary(len(tail)))], tail),
            message([file_tensor(3, data=encoded)]),
        ):
            assert parse(body, length, files).images == sent

    def test_a_raw_request_is_one_file(self, files: ServedModel) -> None:
        assert parse(bytearray(b"anything"), 0, files).images == [b"anything"]

    @pytest.mark.parametrize(
        "tail",
        [
            b"\0",
            b"\0\0\0",
            elements(b"a"),
            elements(b"a", b"b")[:-1],
            elements(b"a", b"b", b"c"),
            elements(b"a", b"b") + b"\0",
            b"\xff\xff\xff\xff" * 2,
            elements(b"") * 1000,
        ],
    )
    def test_inconsistent_element_lengths_are_refused(self, files: ServedModel, tail: bytes) -> None:
        refusal(files, *message([file_tensor(2, **binary(len(tail)))], tail))

    @pytest.mark.parametrize(
        "data", [[], ["YQ=="], ["YQ=="] * 3, ["YQ", "YQ=="], ["\xe9", "YQ=="], [1, 2], [["YQ=="] * 2]]
    )
    def test_invalid_base64_is_refused(self, files: ServedModel, data: object) -> None:
        refusal(files, *message([file_tensor(2, data=data)]))

    @pytest.mark.parametrize(
        ("data", "cause"),
        [
            ("iVBORw0K\nGgoAAAAN", "line breaks"),
            ("iVBORw0K\r\nGgoAAAAN", "line breaks"),
            ("iVBO Rw0K", "spaces"),
            ("data:image/png;base64,iVBORw0K", "data URI"),
            ("iVBORw0_", "for URLs"),
            ("iVBORw0", "multiple of 4"),
            ("\x89PNG", "binary tensor"),
            (137, "is a string"),
        ],
    )
    def test_what_is_wrong_with_base64_is_named(self, files: ServedModel, data: object, cause: str) -> None:
        detail = refusal(files, *message([file_tensor(2, data=["YQ==", data])]))
        assert detail.startswith("`data`, element 1: ")
        assert cause in detail

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_base64_with_line_breaks_that_are_not_escaped_is_named(self, files: ServedModel, end: str) -> None:
        body, _ = message([file_tensor(data=["iVBORw0K-"])])
        assert "without line breaks" in refusal(files, body.replace(b"-", end.encode()))

    @pytest.mark.parametrize("size", [DECODED_AT_ONCE // 4 * 3 + extra for extra in (-1, 0, 1, 2, 3)])
    def test_a_large_file_is_decoded_in_steps(self, files: ServedModel, size: int) -> None:
        sent = np.random.default_rng(0).bytes(size)
        body = message([file_tensor(data=[base64.b64encode(sent).decode()])])
        assert parse(*body, files).images == [sent]

    @pytest.mark.parametrize("place", [0, DECODED_AT_ONCE - 3, DECODED_AT_ONCE - 1, DECODED_AT_ONCE])
    @pytest.mark.parametrize("wrong", ["=", "==", "\u00e9", "-", "\n", " "])
    def test_invalid_base64_within_a_large_file_is_refused(self, files: ServedModel, place: int, wrong: str) -> None:
        text = "A" * (DECODED_AT_ONCE + 8)
        text = text[:place] + wrong + text[place + len(wrong) :]
        assert "base64" in refusal(files, *message([file_tensor(data=[text])]))

    @pytest.mark.parametrize("shape", [[], [0], [MAX_IMAGES + 1], [1, 1], [-1], [1 << 62]])
    def test_invalid_shapes_are_refused(self, files: ServedModel, shape: list[int]) -> None:
        refusal(files, *message([file_tensor(shape=shape, data=["YQ=="])]))


class TestMessage:
    def test_a_byte_order_mark_is_no_part_of_the_json(self, pixels: ServedModel) -> None:
        text = b"\xef\xbb\xbf" + message([tensor(data=[7] * IMAGE)])[0]
        assert np.all(parse(bytearray(text), None, pixels).images == 7)
        text = b"\xef\xbb\xbf" + message([tensor(**binary(IMAGE))])[0]
        assert np.all(parse(bytearray(text + bytes(IMAGE)), len(text), pixels).images == 0)

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
    def test_json_in_utf_16_is_named(self, pixels: ServedModel, encoding: str) -> None:
        text = "\ufeff" * (encoding == "utf-16-be") + json.dumps({"inputs": []})
        assert "UTF-16" in refusal(pixels, text.encode(encoding))

    def test_another_shape_is_named_beside_the_accepted_one(self, pixels: ServedModel) -> None:
        for shape in ([1, 224, 224, 3], [1, 3, 32, 32], [32, 32, 3]):
            detail = refusal(pixels, *message([tensor(shape=shape, **binary(IMAGE))], bytes(IMAGE)))
            assert f"[-1, 32, 32, 3] with 1 to {MAX_IMAGES} images, not {shape}" in detail
            detail = refusal(pixels, *message([tensor(shape=shape, data=[1] * 150_528)]))
            assert f"the message has UINT8 {shape}" in detail

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"{",
            b"null",
            b"[]",
            b'"inputs"',
            b"{}",
            b'{"inputs": null}',
            b'{"inputs": {}}',
            b'{"inputs": []}',
            b'{"inputs": [1]}',
            b'{"inputs": [{}]}',
            b"\xff\xfe",
            b"\0" * 100,
            b'{"inputs": [] "id"}',
            b'{"id": "\xc3\x28", "inputs": []}',
            b'{"id": "\\ud800", "inputs": []}',
            b"[" * 120 + b"]" * 120,
            b"[" * 250_000 + b"]" * 250_000,
            b'{"a":' * 250_000 + b"1" + b"}" * 250_000,
            b"[" + b"[]," * 200_000 + b"[]]",
            b"," * 1_000_000,
            b"{" + b",".join(b'"a%d": {}' % number for number in range(900)) + b"}",
        ],
    )
    def test_malformed_messages_are_refused(self, pixels: ServedModel, text: bytes) -> None:
        assert len(refusal(pixels, text)) < 300

    @pytest.mark.parametrize("depth", [100, 120, 199, 250_000])
    @pytest.mark.parametrize("kind", [("[", "]"), ('{"a":', "}")])
    @pytest.mark.parametrize("member", ["id", "inputs", "outputs", "parameters", "unknown", "data", "custom"])
    def test_deeply_nested_json_is_refused(
        self, pixels: ServedModel, member: str, kind: tuple[str, str], depth: int
    ) -> None:
        good = {"inputs": [tensor(**binary(IMAGE))], "parameters": {}}
        place = {"data": good["inputs"][0], "custom": good["parameters"]}.get(member, good)
        place[member] = "NEST"
        text = json.dumps(good).replace('"NEST"', kind[0] * depth + "1" + kind[1] * depth).encode()
        refusal(pixels, text + bytes(IMAGE), len(text))

    def test_an_invalid_json_length_is_refused(self, pixels: ServedModel) -> None:
        body, length = message([tensor(**binary(IMAGE))], bytes(IMAGE))
        assert len(parse(body, length, pixels).images) == 1
        for wrong in (None, 1, length - 1, length + 1, len(body), len(body) + 1, 99_999_999_999):
            refusal(pixels, body, wrong)

    @pytest.mark.parametrize("size", [0, 1, IMAGE - 1, IMAGE + 1, 2**62, 2**63, 2**64, -1, 1.5, "3072", True, [], {}])
    @pytest.mark.parametrize("sent", [0, IMAGE])
    def test_an_invalid_size_of_binary_data_is_refused(self, pixels: ServedModel, size: object, sent: int) -> None:
        text, _ = message([tensor(**binary(size))])
        refusal(pixels, text + bytes(sent), len(text))

    def test_data_and_binary_exclude_each_other(self, pixels: ServedModel) -> None:
        assert "either" in refusal(pixels, *message([tensor(data=[0] * IMAGE, **binary(IMAGE))], bytes(IMAGE)))
        assert "either" in refusal(pixels, *message([tensor()]))
        assert "left over" in refusal(pixels, *message([tensor(data=[0] * IMAGE)], b"more"))

    def test_exactly_the_model_s_inputs_are_accepted(self, pixels: ServedModel) -> None:
        good = tensor(data=[0] * IMAGE)
        assert "'images'" in refusal(pixels, *message([good, good]))
        assert "'pictures'" in refusal(pixels, *message([good | {"name": "pictures"}]))
        assert "none" in refusal(pixels, *message([]))
        assert "and 18 more" in refusal(pixels, *message([{**tensor(), "name": "x" * 9_000}] * 21))

    def test_exactly_the_model_s_outputs_are_accepted(self, pixels: ServedModel) -> None:
        good = tensor(data=[0] * IMAGE)
        for names in (["labels"], ["probabilities", "probabilities"], ["probabilities", "labels"], [""]):
            assert "'probabilities'" in refusal(pixels, *message([good], outputs=[{"name": name} for name in names]))
        for outputs in ([1], {}, "probabilities", [{}], [{"name": None}], [{"name": "probabilities", "parameters": 1}]):
            refusal(pixels, *message([good], outputs=outputs))
        for absent in ({}, {"outputs": None}, {"outputs": []}, {"outputs": [{"name": "probabilities"}]}):
            request = parse(*message([good], **absent), pixels)
            assert (request.classes, request.binary) == (0, False)

    @pytest.mark.parametrize("classes", [0, -1, 1.5, "3", True, [], 2**64])
    def test_a_class_count_out_of_range_is_refused(self, pixels: ServedModel, classes: object) -> None:
        output = {"name": "probabilities", "parameters": {"classification": classes}}
        if classes == 2**64:
            parse(*message([tensor(data=[0] * IMAGE)], outputs=[output]), pixels)  # more than all is all
        else:
            refusal(pixels, *message([tensor(data=[0] * IMAGE)], outputs=[output]))

    @pytest.mark.parametrize(
        ("by_default", "by_output", "binary"),
        [(None, None, False), (True, None, True), (False, True, True), (True, False, False), (None, True, True)],
    )
    def test_a_parameter_of_the_output_overrides_that_of_the_request(
        self, pixels: ServedModel, by_default: bool | None, by_output: bool | None, binary: bool
    ) -> None:
        members: dict = {}
        if by_default is not None:
            members["parameters"] = {"binary_data_output": by_default}
        if by_output is not None:
            members["outputs"] = [{"name": "probabilities", "parameters": {"binary_data": by_output}}]
        assert parse(*message([tensor(data=[0] * IMAGE)], **members), pixels).binary is binary

    def test_unknown_parameters_with_plain_values_are_ignored(self, pixels: ServedModel) -> None:
        body = message(
            [tensor(data=[0] * IMAGE, parameters={"content_type": "np", "order": 1, "on": True, "rate": 0.5})],
            id="7",
            model_name="cifar10",
            model_version=None,
            parameters={"priority": 1, "timeout": 1000, "sequence_id": "a", "triton_x": False},
        )
        assert parse(*body, pixels).id == "7"
        detail = refusal(pixels, *message([tensor(data=[0] * IMAGE)], parameters={"headers": {}}))
        assert detail == "parameters.headers: it must be a string, a number or a boolean"
        assert "id" in refusal(pixels, *message([tensor(data=[0] * IMAGE)], id=7))

    @pytest.mark.parametrize("character", ["a", "\0", "\u732b", "\U0001f408"])
    def test_the_id_has_a_limit_because_the_answer_repeats_it(self, pixels: ServedModel, character: str) -> None:
        good = [tensor(data=[0] * IMAGE)]
        request = parse(*message(good, id=character * 256), pixels)
        output = output_of(request, [[0.1] * 10] * MAX_IMAGES, pixels)
        content, _ = render(request, output, {}, pixels, "")
        assert json.loads(content)["id"] == character * 256
        assert len(content) < 12_000
        assert refusal(pixels, *message(good, id=character * 257)) == "id: String should have at most 256 characters"
        assert len(refusal(pixels, *message(good, id="x" * 1_000_000))) < 100

    def test_shared_memory_is_refused(self, pixels: ServedModel) -> None:
        region = {"parameters": {"shared_memory_region": "a", "shared_memory_byte_size": IMAGE}}
        assert "shared memory" in refusal(pixels, *message([tensor(**region)]))
        outputs = [{"name": "probabilities", **region}]
        assert "shared memory" in refusal(pixels, *message([tensor(data=[0] * IMAGE)], outputs=outputs))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
MEMBERS = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])


@settings(max_examples=30)  # each is tried with both models
@given(
    changes=st.dictionaries(MEMBERS, JSON, max_size=2),
    members=st.dictionaries(st.sampled_from(["id", "outputs", "parameters", "x"]), JSON, max_size=2),
    tail=st.binary(max_size=40),
    length=st.none() | st.integers(0, 400),
)
def test_any_message_is_parsed_or_refused(
    models: dict[str, ServedModel], changes: dict, members: dict, tail: bytes, length: int | None
) -> None:
    for model, given_tensor in (
        (models["cifar10"], tensor(data=[0] * IMAGE)),
        (models["cifar10_image"], file_tensor(data=["YQ=="])),
    ):
        body, _ = message([given_tensor | changes], **members)
        try:
            assert 1 <= len(parse(bytearray(body + tail), length, model).images) <= MAX_IMAGES
        except MalformedRequest as problem:
            assert len(problem.detail) < 400
            problem.detail.encode()
