"""A graph that needs more than its own bytes is refused, however that is written down."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import onnx
import pytest
from hypothesis import strategies as st
from onnx import TensorProto, helper

from app.bundle import Bundle, BundleError
from app.bundle.graph_check import GraphError, check_graph
from app.bundle.names import GRAPH
from tests.app.forged import forge, graph
from tests.conftest import BUNDLE, INT8_BUNDLE, SMALL_BUNDLE


def small(*nodes: onnx.NodeProto, **rest: Any) -> onnx.ModelProto:
    pixels = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 32, 32, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
    return helper.make_model(helper.make_graph(nodes, "small", [pixels], [logits], **rest), ir_version=10)


def outside(**location: str) -> onnx.TensorProto:
    """A tensor whose values are elsewhere."""
    tensor = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[10], data_location=TensorProto.EXTERNAL)
    for key, value in (location or {"location": "weights.bin"}).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def inside() -> onnx.TensorProto:
    return helper.make_tensor("weight", TensorProto.FLOAT, [1], [1.0])


def indices() -> onnx.TensorProto:
    return helper.make_tensor("indices", TensorProto.INT64, [1], [0])


def sparse(values: onnx.TensorProto, places: onnx.TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=values, indices=places, dims=[10])


def only_entries() -> onnx.TensorProto:
    tensor = outside()
    tensor.ClearField("data_location")
    return tensor


def only_location() -> onnx.TensorProto:
    tensor = outside()
    del tensor.external_data[:]
    return tensor


def constant(**attribute: Any) -> onnx.NodeProto:
    return onnx.NodeProto(op_type="Constant", output=["c"], attribute=[onnx.AttributeProto(name="value", **attribute)])


ELSEWHERE = {
    "an initializer": small(initializer=[outside()]),
    "the last of several": small(initializer=[inside(), inside(), outside()]),
    "an absolute path": small(initializer=[outside(location="/etc/passwd")]),
    "a parent folder": small(initializer=[outside(location="../weights.bin", offset="0", length="40")]),
    "memory of the process": small(initializer=[outside(location="*/_ORT_MEM_ADDR_/*", offset="4096", length="40")]),
    "no location": small(initializer=[outside(offset="0")]),
    "entries without the enum": small(initializer=[only_entries()]),
    "the enum without entries": small(initializer=[only_location()]),
    "a constant": small(constant(t=outside())),
    "one of a constant's tensors": small(constant(tensors=[inside(), outside()])),
    "a sparse constant's values": small(constant(sparse_tensor=sparse(outside(), indices()))),
    "a sparse constant's indices": small(constant(sparse_tensors=[sparse(inside(), outside())])),
    "a sparse initializer": small(sparse_initializer=[sparse(outside(), indices())]),
}


@pytest.mark.parametrize("model", ELSEWHERE.values(), ids=ELSEWHERE)
def test_values_in_another_file_are_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(GraphError, match="another file"):
        check_graph(model.SerializeToString())


def branch() -> onnx.GraphProto:
    return helper.make_graph([constant(t=outside())], "branch", [], [])


def function() -> onnx.FunctionProto:
    return helper.make_function("own", "F", [], ["c"], [constant(t=outside())], [helper.make_opsetid("", 18)])


def vendor(domain: str) -> onnx.NodeProto:
    return helper.make_node("EPContext", ["images"], ["logits"], domain=domain)


def with_training() -> onnx.ModelProto:
    model = small()
    model.training_info.add(algorithm=branch())
    return model


def with_function() -> onnx.ModelProto:
    model = small()
    model.functions.append(function())
    return model


def with_opset(domain: str) -> onnx.ModelProto:
    model = small()
    model.opset_import.add(domain=domain, version=1)
    return model


OTHER = {
    "a branch": (small(constant(g=branch())), "subgraphs"),
    "a branch that is harmless": (small(constant(g=onnx.GraphProto())), "subgraphs"),
    "one of several branches": (small(constant(graphs=[onnx.GraphProto(), branch()])), "subgraphs"),
    "a function": (with_function(), "functions"),
    "training": (with_training(), "training"),
    "Microsoft's operators": (with_opset("com.microsoft"), r"'com\.microsoft'"),
    "a node of Microsoft's": (small(vendor("com.microsoft")), r"'com\.microsoft'"),
    "a custom domain": (small(vendor("evil")), "'evil'"),
    "a long domain": (with_opset("ai.onnx" * 10_000), "ai.onnx"),
    "ONNX's operators for trees": (with_opset("ai.onnx.ml"), r"'ai\.onnx\.ml'"),
}


@pytest.mark.parametrize(("model", "message"), OTHER.values(), ids=OTHER)
def test_features_that_our_networks_do_not_need_are_refused(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(GraphError, match=message) as refused:
        check_graph(model.SerializeToString())
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200


GARBAGE = {
    "nothing": b"",
    "text": b"this is no graph",
    "an ORT format model": b"\x1c\x00\x00\x00ORTM" + bytes(40),
    "a tag without end": b"\xff" * 40,
    "a tag of more than 64 bits": b"\xba" + b"\x80" * 8 + b"\x7f",
    "a length beyond the end": b"\x3a\x7f\x00",
    "a length of 2**63": b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "a group": b"\x3b\x3c",
    "field number 0": b"\x02\x00",
    "a graph that is a number": b"\x38\x01",
    "two graphs": b"\x3a\x00\x3a\x00",
    "no graph": b"\x08\x0a",
    "a field number of more than 29 bits": b"\x3a\x00\xba\x80\x80\x80\x80\x01\x00",
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_bytes_that_are_no_onnx_model_are_refused(content: bytes) -> None:
    with pytest.raises(GraphError):
        check_graph(content)


def test_a_location_of_another_wire_type_is_refused() -> None:
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    for location in (b"\x70\x80\x80\x80\x80\x10", b"\x72\x01\x01", b"\x75\0\0\0\0"):  # 2**32, bytes, fixed 32 bits
        with pytest.raises(GraphError, match="another file"):
            check_graph(field(7, field(5, location)))
    check_graph(field(7, field(5, b"\x70\x00")))  # DEFAULT, written out


def test_too_many_fields_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.bundle.graph_check.MAX_FIELDS", 10_000)
    check_graph(b"\x3a\x00" + b"\x08\x00" * 9_999)
    with pytest.raises(GraphError, match="more than 10,000 fields"):
        check_graph(b"\x3a\x00" + b"\x08\x00" * 10_000)


@pytest.mark.parametrize("folder", [BUNDLE, SMALL_BUNDLE, INT8_BUNDLE], ids=lambda folder: folder.name)
def test_the_shipped_graphs_are_complete(folder: Path) -> None:
    content = (folder / GRAPH).read_bytes()
    check_graph(content)
    with pytest.raises(GraphError):
        check_graph(content[:-1])


@pytest.mark.parametrize("change", [lambda model: model.graph.initializer.append(outside())])
def test_a_bundle_with_an_external_value_is_refused_despite_correct_hashes(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx: a tensor's values are in another file"):
        Bundle.load(forge(tmp_path / "bundle", {GRAPH: graph(change)}))


MESSAGE = small(constant(t=inside()), initializer=[inside(), outside()]).SerializeToString()


@hypothesis.given(st.data())
def test_no_accepted_bytes_have_external_values(data: st.DataObject) -> None:
    """Where protobuf itself reads a message that passes, it must not find what the walk has not."""
    content = bytearray(MESSAGE)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        if not content:
            return
    try:
        check_graph(bytes(content))
    except GraphError:
        return
    try:
        model = onnx.load_from_string(bytes(content))
    except Exception:  # protobuf's DecodeError: then no program reads it
        return
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute)]
    assert not any(tensor.data_location or tensor.external_data for tensor in tensors)
    assert not model.functions and not any(a.HasField("g") for node in model.graph.node for a in node.attribute)
