"""The ONNX graph of a trained network: preprocessing inside, batch norms folded into the convolutions.

Written node by node: MobileNetV2 needs ten operators, the graph has no more nodes than the network has
operations, and the same weights give the same bytes with every version of PyTorch. What it computes is
compared with app.network.served before it is shipped (training.export.bundle).

    input   images      uint8 [N, side, side, 3], RGB; or [N, H, W, 3] if the network takes photographs too
    output  logits      float32 [N, classes]
    output  class_maps  float32 [N, classes, h, w]: what each place of the last map (4x4, in the small network 2x2) adds
                        to each logit; their means are the logits (Zhou et al. 2016, arXiv:1512.04150)

All outputs are computed even if few are fetched: ONNX Runtime's builds ignore only_execute_path_to_fetches.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

from app.bundle.names import CLASS_MAPS, INPUT, LOGITS
from app.network.mobilenet import SIDE
from app.network.served import ServedNetwork

OPSET, IR_VERSION = 18, 10  # onnxruntime reads them since 1.20, the oldest that the service accepts


def build_graph(served: ServedNetwork, *, side: int = SIDE, any_size: bool = False) -> onnx.ModelProto:
    """The graph of `served` in evaluation mode, checked by ONNX, for images of `side` pixels or of `any_size`."""
    size = ["H", "W"] if any_size else [side, side]
    model, network = served.model, served.network
    graph = _Graph()
    # Transposing bytes is cheaper than transposing floats.
    pixels = graph.add("Transpose", INPUT, perm=[0, 3, 1, 2])
    pixels = graph.add("Cast", pixels, to=TensorProto.FLOAT)
    pixels = graph.add("Mul", pixels, graph.constant("scale", model.scale))
    hidden = graph.add("Sub", pixels, graph.constant("offset", model.offset))
    for index, block in enumerate(network.features):
        path = f"features.{index}"
        hidden = (
            _residual(graph, hidden, block, path)
            if isinstance(block, InvertedResidual)
            else _chain(graph, hidden, block, path)
        )
    head = network.get_submodule("classifier.1")
    assert isinstance(head, nn.Linear)
    weight = graph.constant("classifier.1.weight", head.weight)
    bias = graph.constant("classifier.1.bias", head.bias)
    features = graph.add("Flatten", graph.add("GlobalAveragePool", hidden))
    graph.add("Gemm", features, weight, bias, name=LOGITS, transB=1)
    at_each_place = graph.add("Unsqueeze", weight, graph.constant("axes", torch.tensor([2, 3])))
    graph.add("Conv", hidden, at_each_place, bias, name=CLASS_MAPS, kernel_shape=[1, 1])
    classes = head.out_features
    outputs = [
        helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["N", classes]),
        helper.make_tensor_value_info(CLASS_MAPS, TensorProto.FLOAT, ["N", classes, "H", "W"]),
    ]
    return graph.finish(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", *size, 3]), outputs)


class _Graph:
    """Nodes and constants in the order in which they were added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Append a node; the name of its output."""
        output = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Tensor) -> str:
        value = value.detach()
        array = (value.float() if value.dtype == torch.float64 else value).contiguous().numpy()
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def finish(self, images: onnx.ValueInfoProto, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "mobilenet_v2", [images], outputs, list(self.constants.values()))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="cifar10-classifier",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _residual(graph: _Graph, before: str, block: InvertedResidual, path: str) -> str:
    after = _chain(graph, before, block.conv, f"{path}.conv")
    return graph.add("Add", before, after) if block.use_res_connect else after


def _chain(graph: _Graph, hidden: str, layers: nn.Module, path: str) -> str:
    """Convolution, norm and ReLU6 in any nesting of Sequentials; each norm follows its convolution."""
    flat = [(name, layer) for name, layer in layers.named_modules() if not isinstance(layer, nn.Sequential)]
    for position, (name, layer) in enumerate(flat):
        match layer:
            case nn.Conv2d():
                norm = flat[position + 1][1]
                assert isinstance(norm, nn.BatchNorm2d)
                hidden = _convolution(graph, hidden, layer, norm, f"{path}.{name}")
            case nn.Upsample():
                hidden = _enlarged(graph, hidden, layer)
            case nn.BatchNorm2d():
                pass  # folded into the convolution before it
            case nn.ReLU6():
                low, high = (graph.constant(f"relu6_{bound}", torch.tensor(float(bound))) for bound in (0, 6))
                hidden = graph.add("Clip", hidden, low, high)
            case _:
                raise AssertionError(f"no ONNX operator is known for {path}.{name}, {type(layer).__name__}")
    return hidden


def _enlarged(graph: _Graph, hidden: str, layer: nn.Upsample) -> str:
    assert layer.mode == "bilinear" and not layer.align_corners and isinstance(layer.size, tuple)
    size = graph.constant("enlarge", torch.tensor(layer.size))
    # The inputs named "" are the region of interest, which bilinear interpolation does not use, and the factors.
    how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return graph.add("Resize", hidden, "", "", size, axes=[2, 3], **how)


def _convolution(graph: _Graph, hidden: str, layer: nn.Conv2d, norm: nn.BatchNorm2d, path: str) -> str:
    weight, bias = fold(layer, norm)
    assert not isinstance(layer.padding, str)
    top, left = layer.padding
    return graph.add(
        "Conv",
        hidden,
        graph.constant(f"{path}.weight", weight),
        graph.constant(f"{path}.bias", bias),
        group=layer.groups,
        kernel_shape=list(layer.kernel_size),
        pads=[top, left, top, left],
        strides=list(layer.stride),
    )


def fold(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that does what `layer` and then `norm` (in evaluation mode) do."""
    assert layer.bias is None and norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        # In double precision: the network is deep, and must agree with PyTorch to 1e-4.
        gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        weight = layer.weight.double() * gain[:, None, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * gain
        return weight.float(), bias.float()


FEATURES = "features"


def with_features(graph: bytes) -> bytes:
    """`graph` with a further output, FEATURES: float32 [N, channels], what the last layer makes logits of."""
    model = onnx.load_from_string(graph)
    (head,) = (node for node in model.graph.node if LOGITS in node.output)
    model.graph.node.append(helper.make_node("Identity", [head.input[0]], [FEATURES]))
    model.graph.output.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", "channels"]))
    content: bytes = model.SerializeToString()
    return content


@lru_cache(maxsize=1)  # a report runs one graph on images with 75 kinds of damage
def _session(graph: bytes, optimised: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def takes_any_size(graph: bytes) -> bool:
    """Whether it takes photographs beside thumbnails."""
    (images,) = _session(graph).get_inputs()
    return not isinstance(images.shape[1], int)


def run_graph(
    graph: bytes,
    images: npt.NDArray[np.uint8],
    output: str = LOGITS,
    batch_size: int = 50,
    *,
    optimised: bool = True,
) -> npt.NDArray[np.float32]:
    """One output for images [N, H, W, 3], by ONNX Runtime on all cores; `optimised`: with operators it fuses."""
    session = _session(graph, optimised)
    batches = np.array_split(images, math.ceil(len(images) / batch_size))
    return np.concatenate([session.run([output], {INPUT: batch})[0] for batch in batches])
