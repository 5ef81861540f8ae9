import base64
import ctypes
import io
import json
import os
import struct
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from app.bundle.manifest import Abstention
from app.bundle.names import CHECKPOINT, GRAPH, NOVELTY, REPORT
from app.bundle.reader import Bundle, BundleError
from app.inference.sessions import (
    OnnxSession,
    Outputs,
    Session,
    SessionError,
    TorchSession,
    load_session,
    self_check,
)
from app.settings import Settings
from tests.app.forged import forge, former, graph, own_score
from tests.benchmarks.serving.processes import resident_mb
from tests.conftest import BUNDLE, DATA, INT8_BUNDLE, SMALL_BUNDLE


def pictures() -> np.ndarray:
    """uint8 [10, 32, 32, 3]: one of each class."""
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(DATA.glob("*.png"))])


@pytest.fixture(scope="module")
def torch_session() -> Session:
    return load_session(Settings(_env_file=None, model_dir=BUNDLE, engine="torch"))[1]


@pytest.fixture(params=["onnx", "torch"])
def session(request: pytest.FixtureRequest, loaded: tuple[Bundle, Session], torch_session: Session) -> Session:
    return loaded[1] if request.param == "onnx" else torch_session


def assert_close(one: Outputs, other: Outputs) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_shapes_and_types(session: Session) -> None:
    outputs = session.run(pictures(), maps=True)
    assert outputs.ood_scores is None  # the entropy of the logits
    assert [outputs.logits.shape, outputs.class_maps.shape] == [(10, 10), (10, 10, 4, 4)]
    assert {outputs.logits.dtype, outputs.class_maps.dtype} == {np.dtype(np.float32)}


def test_class_maps_are_computed_only_on_request(session: Session) -> None:
    without, with_maps = session.run(pictures()), session.run(pictures(), maps=True)
    assert without.class_maps is None
    assert_close(without[:2], with_maps[:2])


def test_the_means_of_the_maps_are_the_logits(session: Session) -> None:
    outputs = session.run(pictures(), maps=True)
    np.testing.assert_allclose(outputs.class_maps.mean((2, 3)), outputs.logits, atol=1e-4)


@pytest.fixture(scope="module")
def former_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return former(tmp_path_factory.mktemp("former"))


def test_pytorch_and_onnx_agree_on_the_score_of_a_former_bundle(former_bundle: Path) -> None:
    by_onnx, by_torch = (
        load_session(Settings(_env_file=None, model_dir=former_bundle, engine=engine))[1].run(pictures())
        for engine in ("onnx", "torch")
    )
    assert by_onnx.ood_scores is not None
    assert by_onnx.ood_scores.shape == (10,)
    np.testing.assert_allclose(by_onnx.ood_scores, by_torch.ood_scores, rtol=1e-3)


def test_pytorch_and_onnx_agree(loaded: tuple[Bundle, Session], torch_session: Session) -> None:
    assert_close(torch_session.run(pictures(), maps=True), loaded[1].run(pictures(), maps=True))


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("folder", [BUNDLE, SMALL_BUNDLE], ids=lambda folder: folder.name)
def test_the_shipped_models_know_the_examples(folder: Path, engine: Any) -> None:
    session = load_session(Settings(_env_file=None, model_dir=folder, engine=engine))[1]
    assert session.run(pictures()).logits.argmax(1).tolist() == list(range(10))


def test_a_batch_and_single_images_have_the_same_outputs(session: Session) -> None:
    together = session.run(pictures(), maps=True)
    for index, image in enumerate(pictures()):
        assert_close(together.part(index, index + 1), session.run(image[None], maps=True))


def test_threads_share_a_session(session: Session) -> None:
    images = [image[None] for image in pictures()] * 4
    expected = [session.run(image, maps=True) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for got, alone in zip(pool.map(lambda image: session.run(image, maps=True), images), expected, strict=True):
            assert_close(got, alone)


def test_a_model_that_computes_something_else_is_noticed(loaded: tuple[Bundle, Session]) -> None:
    class Wrong(Session):
        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            return Outputs(loaded[1].run(images).logits + np.float32(0.5))

    with pytest.raises(SessionError, match=r"self-check: a logit is off by 0\.5"):
        self_check(Wrong(), loaded[0])


def test_a_model_that_computes_nonsense_is_noticed(loaded: tuple[Bundle, Session]) -> None:
    class Nonsense(Session):
        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            return Outputs(np.full((1, 10), np.nan, np.float32))

    with pytest.raises(SessionError):
        self_check(Nonsense(), loaded[0])


def test_another_out_of_distribution_score_is_noticed(former_bundle: Path) -> None:
    bundle, session = load_session(Settings(_env_file=None, model_dir=former_bundle))

    class Wrong(Session):
        def __init__(self, by: float) -> None:
            self.by = np.float32(by)

        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            outputs = session.run(images)
            return outputs._replace(ood_scores=outputs.ood_scores + self.by)

    self_check(Wrong(0.0), bundle)
    for by in (0.1, np.nan):
        with pytest.raises(SessionError, match="self-check: its ood_score"):
            self_check(Wrong(by), bundle)


def changed(**fields: object) -> Bundle:
    """The shipped bundle, not yet read by a session, its manifest with other fields."""
    bundle = Bundle.load(BUNDLE)
    bundle.manifest = bundle.manifest.model_copy(update=fields)
    return bundle


@pytest.mark.parametrize("kind", [OnnxSession, TorchSession])
def test_a_bundle_without_abstention_has_no_scores(kind: type[Session]) -> None:
    bundle = changed(abstention=None)
    session = kind(bundle)
    assert session.run(pictures()).ood_scores is None
    self_check(session, bundle)


def test_pytorch_refuses_an_unknown_out_of_distribution_score() -> None:
    with pytest.raises(SessionError, match=r"can compute novelty, not 'tea leaves'"):
        TorchSession(changed(abstention=Abstention(method="tea leaves", threshold=0, kept=0.95)))


def test_pytorch_needs_the_parameters_of_the_score(former_bundle: Path) -> None:
    bundle = Bundle.load(former_bundle)
    bundle.forget("novelty.safetensors")
    with pytest.raises(SessionError, match=r"holds no novelty\.safetensors"):
        TorchSession(bundle)


def test_a_graph_without_maps_gives_none_and_one_without_scores_is_refused() -> None:
    graph = onnx.load_from_string(Bundle.load(BUNDLE).read("model.onnx"))
    del graph.graph.output[1:]  # only the logits: an older bundle
    older = changed(abstention=None)
    older._files["model.onnx"] = graph.SerializeToString()
    outputs = OnnxSession(older).run(pictures(), maps=True)
    assert outputs.logits.shape == (10, 10)
    assert outputs.ood_scores is outputs.class_maps is None
    strange = changed(abstention=Abstention(method="novelty", threshold=0, kept=0.95))
    strange._files["model.onnx"] = graph.SerializeToString()
    with pytest.raises(SessionError, match="no ood_score"):
        OnnxSession(strange)


def rename(model: onnx.ModelProto, name: str) -> None:
    """Let the graph compute an output under another name."""
    for node in model.graph.node:
        for place, output in enumerate(node.output):
            if output == name:
                node.output[place] = f"{name}_before"


def dimension(model: onnx.ModelProto, name: str, place: int) -> onnx.TensorShapeProto.Dimension:
    tensors = {tensor.name: tensor for tensor in [*model.graph.input, *model.graph.output]}
    return tensors[name].type.tensor_type.shape.dim[place]


def another_operator(model: onnx.ModelProto) -> None:
    model.graph.node[3].op_type = "Frobnicate"


def another_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


def half_a_graph(model: onnx.ModelProto) -> None:
    del model.graph.node[5:9]


def a_cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "logits"


def too_few_values(model: onnx.ModelProto) -> None:
    model.graph.initializer[5].raw_data = b"123"


def of_one_size(model: onnx.ModelProto) -> None:
    for side in (1, 2):
        dimension(model, "images", side).dim_value = 32


def fixed_batch(model: onnx.ModelProto) -> None:
    dimension(model, "images", 0).dim_value = 1


def one_height(model: onnx.ModelProto) -> None:
    dimension(model, "images", 1).dim_value = 64


def four_channels(model: onnx.ModelProto) -> None:
    dimension(model, "images", 3).dim_value = 4


def floats_in(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def a_second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N"]))


def no_logits(model: onnx.ModelProto) -> None:
    del model.graph.output[0]


def doubles_out(model: onnx.ModelProto) -> None:
    rename(model, "logits")
    model.graph.node.append(helper.make_node("Cast", ["logits_before"], ["logits"], to=TensorProto.DOUBLE))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def another_number_of_logits(model: onnx.ModelProto) -> None:
    dimension(model, "logits", 1).dim_value = 9


def halved_rows(model: onnx.ModelProto) -> None:
    rename(model, "logits")
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 5]), "shape"))
    model.graph.node.append(helper.make_node("Reshape", ["logits_before", "shape"], ["logits"]))
    dimension(model, "logits", 1).dim_param = "C"


def a_column_of_scores(model: onnx.ModelProto) -> None:
    rename(model, "ood_score")
    model.graph.node.append(helper.make_node("Flatten", ["ood_score_before"], ["ood_score"]))
    model.graph.output[2].CopyFrom(helper.make_tensor_value_info("ood_score", TensorProto.FLOAT, ["N", 1]))


def a_sequence(model: onnx.ModelProto) -> None:
    rename(model, "ood_score")
    model.graph.node.append(helper.make_node("SequenceConstruct", ["ood_score_before"], ["ood_score"]))
    model.graph.output[2].CopyFrom(helper.make_tensor_sequence_value_info("ood_score", TensorProto.FLOAT, None))


def flat_maps(model: onnx.ModelProto) -> None:
    rename(model, "class_maps")
    model.graph.node.append(helper.make_node("Flatten", ["class_maps_before"], ["class_maps"]))
    model.graph.output[1].CopyFrom(helper.make_tensor_value_info("class_maps", TensorProto.FLOAT, ["N", "M"]))


def only_single_images(model: onnx.ModelProto) -> None:
    """Declared for any number of images, computed for one: the shape comes from a tensor that only running knows."""
    rename(model, "logits")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 10]), "shape"))
    # Inference of shapes does not see through this sum.
    model.graph.node.append(helper.make_node("ReduceSum", ["logits_before"], ["sum"], keepdims=0))
    model.graph.node.append(helper.make_node("IsNaN", ["sum"], ["never"]))
    model.graph.node.append(helper.make_node("Cast", ["never"], ["zero"], to=TensorProto.INT64))
    model.graph.node.append(helper.make_node("Add", ["shape", "zero"], ["known_late"]))
    model.graph.node.append(helper.make_node("Reshape", ["logits_before", "known_late"], ["logits"]))


def infinite_maps(model: onnx.ModelProto) -> None:
    rename(model, "class_maps")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(np.inf), "infinity"))
    model.graph.node.append(helper.make_node("Add", ["class_maps_before", "infinity"], ["class_maps"]))


def four_terabytes(model: onnx.ModelProto) -> None:
    rename(model, "logits")
    model.graph.initializer.append(numpy_helper.from_array(np.array([10**6, 10**6]), "shape"))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["zeros"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["logits_before", "zero"], ["logits"]))


GRAPHS = [
    *[(change, r"model\.onnx cannot be loaded: .+") for change in (another_operator, another_opset, half_a_graph)],
    *[(change, r"model\.onnx cannot be loaded: .+") for change in (a_cycle, too_few_values)],
    *[(change, r"model\.onnx: images is .* \['N', 'N', 'N', 3\]") for change in (fixed_batch, one_height, floats_in)],
    (four_channels, r"model\.onnx (cannot be loaded|: images is)"),
    (a_second_input, "one input, images"),
    (no_logits, "no logits"),
    (doubles_out, r"logits is tensor\(double\)"),
    (another_number_of_logits, r"model\.onnx cannot be loaded: .*Inferred=10 Declared=9"),
    (halved_rows, r"logits is .* \['N', 5\], but bundle\.json asks for .* \['N', 10\]"),
    (flat_maps, "class_maps is .*'any'"),
    (only_single_images, "fails its self-check: .*[Rr]eshape"),
    (infinite_maps, "class_maps are not all finite"),
    (four_terabytes, "fails its self-check: .*memory"),
]


@pytest.mark.parametrize(("change", "message"), GRAPHS, ids=[change.__name__ for change, _ in GRAPHS])
def test_a_graph_with_other_inputs_or_outputs_is_refused_despite_correct_hashes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    folder = forge(tmp_path / "bundle", {GRAPH: graph(change)})
    with pytest.raises(SessionError, match=message) as refused:
        load_session(Settings(_env_file=None, model_dir=folder))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (a_column_of_scores, r"ood_score is .*but bundle\.json asks for tensor\(float\) \['N'\]"),
        (a_sequence, r"ood_score is seq\(tensor\(float\)\)"),
    ],
)
def test_a_score_of_another_form_is_refused(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    changed_graph = graph(lambda model: (own_score(model), change(model)))
    with pytest.raises(SessionError, match=message):
        load_session(Settings(_env_file=None, model_dir=former(tmp_path / "bundle", {GRAPH: changed_graph})))


MANIFEST = json.loads((BUNDLE / "bundle.json").read_bytes())
THUMBNAILS_ONLY = {"photographs": None, "photograph_self_check": None}


def nine_classes() -> dict[str, Any]:
    report = json.loads((BUNDLE / REPORT).read_bytes())
    del report["per_class"][9]
    report["confusion_matrix"] = [row[:9] for row in report["confusion_matrix"][:9]]
    check = MANIFEST["self_check"] | {"logits": MANIFEST["self_check"]["logits"][:9]}
    fitted = {"calibration": None, "reference": None}
    changes = {"classes": MANIFEST["classes"][:9], "self_check": check, **fitted, **THUMBNAILS_ONLY}
    new = {REPORT: json.dumps(report).encode(), GRAPH: graph(of_one_size)}
    return {"new": new, "changes": changes}


@pytest.mark.parametrize(
    ("engine", "message"),
    [("onnx", r"logits is .*10\], but bundle\.json"), ("torch", r"classifier\.1\.bias is .*\[10\]")],
)
def test_fewer_classes_than_the_network_has_are_refused(tmp_path: Path, engine: Any, message: str) -> None:
    wanted = nine_classes()
    folder = forge(tmp_path / "bundle", wanted["new"], **wanted["changes"])
    with pytest.raises(SessionError, match=message):
        load_session(Settings(_env_file=None, model_dir=folder, engine=engine))


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "PNG")
    return out.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def claims(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "no PNG"),
        (b"nothing that Pillow knows", "no PNG"),
        (png(16, 32), "16 x 32 pixels, the model's input 32 x 32"),
        (png(32, 64), "32 x 64 pixels, the model's input 32 x 32"),
        (claims(9000, 9000), "9000 x 9000 pixels"),
        (claims(12000, 12000), "no PNG"),
        (claims(30000, 30000), "no PNG"),
        (claims(32, 32), "no PNG"),
        (png(32, 32)[:60], "no PNG"),
        (png(32, 32), "a logit is off"),
    ],
    ids=["nothing", "text", "narrow", "high", "large", "very large", "a bomb", "empty", "cut off", "black"],
)
def test_a_self_check_with_another_image_is_refused(tmp_path: Path, image: bytes, message: str) -> None:
    check = MANIFEST["self_check"] | {"image": base64.b64encode(image).decode()}
    with pytest.raises(SessionError, match=message) as refused:
        load_session(Settings(_env_file=None, model_dir=forge(tmp_path / "bundle", self_check=check)))
    assert "\n" not in str(refused.value)


def test_an_input_of_another_size_is_refused(tmp_path: Path) -> None:
    one_size = {GRAPH: graph(of_one_size)}
    folder = forge(tmp_path / "bundle", one_size, input=MANIFEST["input"] | {"height": 64}, **THUMBNAILS_ONLY)
    with pytest.raises(SessionError, match=r"images is .* asks for .* \['N', 64, 32, 3\]"):
        load_session(Settings(_env_file=None, model_dir=folder))
    with pytest.raises(SessionError, match="32 x 32 pixels, the model's input 32 x 64"):
        load_session(Settings(_env_file=None, model_dir=folder, engine="torch"))


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_photographs_have_a_size_and_a_self_check_of_their_own(tmp_path: Path, engine: Any) -> None:
    settings = Settings(_env_file=None, model_dir=BUNDLE, engine=engine)
    assert load_session(settings)[1].run(np.zeros((2, 64, 64, 3), np.uint8)).logits.shape == (2, 10)
    check = MANIFEST["photograph_self_check"]
    for name, changed, message in (
        ("logits", {"logits": [0.0] * 10}, "a logit is off"),
        ("image", {"image": MANIFEST["self_check"]["image"]}, "32 x 32 pixels, the model's input 64 x 64"),
    ):
        folder = forge(tmp_path / name, photograph_self_check=check | changed)
        with pytest.raises(SessionError, match=message):
            load_session(Settings(_env_file=None, model_dir=folder, engine=engine))


def test_a_graph_of_one_size_is_refused_for_photographs_of_another(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"images is .*\[.*, 32, 32, 3\]"):
        load_session(Settings(_env_file=None, model_dir=forge(tmp_path / "bundle", {GRAPH: graph(of_one_size)})))


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_a_bundle_from_before_photographs_is_loaded(tmp_path: Path, engine: Any) -> None:
    folder = forge(tmp_path / "bundle", {GRAPH: graph(of_one_size)}, **THUMBNAILS_ONLY)
    session = load_session(Settings(_env_file=None, model_dir=folder, engine=engine))[1]
    assert session.run(pictures()).logits.shape == (len(pictures()), 10)


Tensors = dict[str, torch.Tensor]
HEAD = "classifier.1.weight"
STORED = [
    (CHECKPOINT, lambda w: {name: w[name] for name in w if name != HEAD}, f"{HEAD} is missing"),
    (CHECKPOINT, lambda w: w | {"surprise" * 50: torch.zeros(1)}, "no tensor 'surprise"),
    (CHECKPOINT, lambda w: w | {HEAD: torch.zeros(9, 1280)}, r"\[9, 1280\], this network needs .*\[10, 1280\]"),
    (CHECKPOINT, lambda w: w | {HEAD: w[HEAD].double()}, "float64"),
    (CHECKPOINT, lambda w: w | {HEAD: w[HEAD] * np.nan}, "not all finite"),
    (CHECKPOINT, lambda w: w | {HEAD: w[HEAD] + 1}, "a logit is off"),
    (CHECKPOINT, lambda w: {}, "is missing"),
    (NOVELTY, lambda w: {name: w[name] for name in w if name != "mean"}, "mean is missing"),
    (NOVELTY, lambda w: w | {"neighbours": torch.zeros(250, 5).half()}, "neighbours is .*1280"),
    (NOVELTY, lambda w: w | {"neighbours": w["neighbours"][:5].clone()}, "fails its self-check"),
    (NOVELTY, lambda w: w | {"neighbours": w["neighbours"].float()}, "float32.*needs torch.float16"),
    (NOVELTY, lambda w: w | {"centre": torch.tensor(1.0)}, r"centre is torch\.float32 \[\]"),
    (NOVELTY, lambda w: w | {"deviation": w["deviation"] * 0}, "ood_score are not all finite"),
    (NOVELTY, lambda w: w | {"unusual": torch.zeros(1280, 0).half()}, "its ood_score is"),
]


@pytest.mark.parametrize(("file", "change", "message"), STORED, ids=[message for *_, message in STORED])
def test_pytorch_refuses_other_weights_with_one_line(
    tmp_path: Path, file: str, change: Callable[[Tensors], Tensors], message: str
) -> None:
    make = former if file == NOVELTY else forge
    whole = make(tmp_path / "whole")
    content = safetensors.torch.save(change(safetensors.torch.load((whole / file).read_bytes())))
    with pytest.raises(SessionError, match=message) as refused:
        load_session(Settings(_env_file=None, model_dir=make(tmp_path / "bundle", {file: content}), engine="torch"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("file", [CHECKPOINT, NOVELTY])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\xff" * 9,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 59) + b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}     ' + bytes(4),
    ],
    ids=["nothing", "garbage", "a huge header", "a list", "an unknown type"],
)
def test_pytorch_refuses_a_file_that_is_not_safetensors(tmp_path: Path, file: str, content: bytes) -> None:
    folder = (former if file == NOVELTY else forge)(tmp_path / "bundle", {file: content})
    with pytest.raises(SessionError, match=rf"^{file} cannot be loaded: ") as refused:
        load_session(Settings(_env_file=None, model_dir=folder, engine="torch"))
    assert "\n" not in str(refused.value)


def test_pytorch_refuses_a_graph_of_integers() -> None:
    with pytest.raises(SessionError, match="ENGINE=torch cannot run .*_int8, a graph of 8-bit integers: ENGINE=onnx"):
        load_session(Settings(_env_file=None, model_dir=INT8_BUNDLE, engine="torch"))


def test_a_graph_of_integers_has_a_tolerance_of_its_own_that_damage_exceeds() -> None:
    bundle, session = load_session(Settings(_env_file=None, model_dir=INT8_BUNDLE))
    tolerance = bundle.manifest.self_check.tolerance

    class Wrong(Session):
        def __init__(self, off: float) -> None:
            self._off = np.float32(off)

        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            return Outputs(session.run(images).logits + self._off)

    self_check(Wrong(0.9 * tolerance), bundle)
    with pytest.raises(SessionError, match="self-check: a logit is off by"):
        self_check(Wrong(1.1 * tolerance), bundle)


@pytest.mark.parametrize("place", [10, 30, 50])
def test_damage_to_any_layer_of_integers_is_noticed(place: int) -> None:
    model = onnx.load(INT8_BUNDLE / GRAPH)
    weights = [one for one in model.graph.initializer if one.data_type == TensorProto.INT8 and len(one.dims) == 4]
    chosen = weights[min(place, len(weights) - 1)]
    zeros = numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(chosen)), chosen.name)
    chosen.CopyFrom(zeros)
    whole = Bundle.load(INT8_BUNDLE)
    damaged = Bundle(whole.manifest, whole.report, {GRAPH: model.SerializeToString()})
    with pytest.raises(SessionError, match="self-check: a logit is off by"):
        self_check(OnnxSession(damaged), damaged)


def test_a_missing_torch_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SessionError, match="extra 'torch'"):
        TorchSession(Bundle.load(BUNDLE))


def test_a_bundle_whose_digest_is_not_pinned_is_refused() -> None:
    digest = Bundle.load(BUNDLE).manifest.digest
    assert load_session(Settings(_env_file=None, model_dir=BUNDLE, model_digest=f"{'0' * 64},{digest}"))
    with pytest.raises(BundleError, match=f"MODEL_DIGEST does not name its digest, {digest}"):
        load_session(Settings(_env_file=None, model_dir=BUNDLE, model_digest="0" * 64))


def test_weights_are_not_kept_twice() -> None:
    bundle, _ = load_session(Settings(_env_file=None, model_dir=BUNDLE))
    assert "model.onnx" not in bundle
    assert "checkpoint.safetensors" not in bundle
    assert "report.json" in bundle


def test_each_computation_runs_on_one_thread() -> None:
    options = OnnxSession(Bundle.load(BUNDLE))._session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 1


def test_a_session_gives_back_the_memory_of_large_batches() -> None:
    fresh = OnnxSession(Bundle.load(BUNDLE))
    fresh.run(np.zeros((32, 32, 32, 3), np.uint8))
    held = resident_mb(os.getpid())
    fresh.release_memory()
    ctypes.CDLL(None).malloc_trim(0)
    assert resident_mb(os.getpid()) < held - 40
    assert fresh.run(np.zeros((1, 32, 32, 3), np.uint8)).logits.shape == (1, 10)


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "openvino", "coreml"])
def test_an_execution_provider_that_is_not_installed_is_refused_with_its_package(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    package = "onnxruntime-openvino" if name == "openvino" else "onnxruntime"
    with pytest.raises(SessionError, match=f"EXECUTION_PROVIDER={name}: {name} comes with {package}"):
        load_session(Settings(_env_file=None, model_dir=BUNDLE, execution_provider=name))


def test_an_execution_provider_whose_libraries_are_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime then takes the processor."""
    start = onnxruntime.InferenceSession
    cpu = ["CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", *cpu])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda graph, options, providers: start(graph, options, cpu))
    with pytest.raises(SessionError, match="EXECUTION_PROVIDER=cuda: it cannot start"):
        load_session(Settings(_env_file=None, model_dir=BUNDLE, execution_provider="cuda"))
