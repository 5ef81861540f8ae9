from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from app.bundle.manifest import Architecture
from app.network.mobilenet import Preprocessed, mobilenet_v2
from app.network.served import ServedNetwork
from training.config import IMAGENET_MEAN, IMAGENET_STD
from training.export.graph import build_graph, fold


def trained_looking(architecture: Architecture) -> Preprocessed:
    """A network whose batch norms have an effect: untrained ones are nearly the identity."""
    torch.manual_seed(0)
    network = mobilenet_v2(architecture)
    random = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            for tensor, low, high in (
                (module.weight.data, 0.5, 2),
                (module.bias.data, -1, 1),
                (module.running_mean, -1, 1),
                (module.running_var, 0.2, 3),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=random) * (high - low) + low)
    return Preprocessed(network, IMAGENET_MEAN, IMAGENET_STD).eval()


def test_folding_is_convolution_then_norm() -> None:
    model = trained_looking(Architecture())
    layer, norm = model.network.get_submodule("features.3.conv.1.0"), model.network.get_submodule("features.3.conv.1.1")
    assert isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    weight, bias = fold(layer, norm)
    images = torch.randn(2, layer.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        folded = nn.functional.conv2d(images, weight, bias, layer.stride, layer.padding, groups=layer.groups)
        torch.testing.assert_close(folded, norm(layer(images)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("stem", "stage2", "enlarge", "side"), [(1, 1, 1, 4), (1, 2, 1, 2), (2, 2, 1, 1), (2, 2, 2, 2), (2, 2, 4, 4)]
)
def test_the_graph_is_the_network(stem: int, stage2: int, enlarge: int, side: int) -> None:
    strides = {"stem_stride": stem, "stage2_stride": stage2, "enlarge": enlarge}
    model = trained_looking(Architecture.model_validate(strides))
    session = onnxruntime.InferenceSession(
        build_graph(ServedNetwork(model)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (images,), (logits, maps) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["N", 32, 32, 3])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["N", 10])
    assert (maps.name, maps.type, maps.shape) == ("class_maps", "tensor(float)", ["N", 10, side, side])
    random = np.random.default_rng(0)
    for count in (1, 3):
        batch = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        with torch.inference_mode():
            expected = model(torch.from_numpy(batch)).numpy()
        scale = float(np.abs(expected).max())
        by_graph, by_map = session.run(None, {"images": batch})
        assert by_graph == pytest.approx(expected, abs=1e-5 * scale)
        assert by_map.mean((2, 3)) == pytest.approx(expected, abs=1e-5 * scale)


def test_the_graph_holds_what_it_needs_and_no_more() -> None:
    graph = build_graph(ServedNetwork(trained_looking(Architecture(stem_stride=2, stage2_stride=2))))
    onnx.checker.check_model(graph, full_check=True)
    assert Counter(node.op_type for node in graph.graph.node) == {
        "Transpose": 1,
        "Cast": 1,
        "Mul": 1,
        "Sub": 1,
        "Conv": 53,
        "Clip": 35,
        "Add": 10,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
        "Unsqueeze": 1,
    }
    used = {name for node in graph.graph.node for name in node.input}
    assert {constant.name for constant in graph.graph.initializer} <= used


def test_the_same_weights_give_the_same_bytes() -> None:
    first, again = (
        build_graph(ServedNetwork(trained_looking(Architecture(stem_stride=2)))).SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert first == again


def test_a_layer_that_it_does_not_know_is_not_passed_over() -> None:
    model = trained_looking(Architecture())
    block = model.network.get_submodule("features.0")
    assert isinstance(block, nn.Sequential)
    block[2] = nn.Hardswish()
    with pytest.raises(AssertionError, match="no ONNX operator is known for features.0.2, Hardswish"):
        build_graph(ServedNetwork(model))
