"""The ONNX graph of a trained network: preprocessing inside, batch norms folded into the convolutions.

Written node by node: MobileNetV2 needs nine operators, the graph has no more nodes than the network has
operations, and the same weights give the same bytes with every version of PyTorch. What it computes is
compared with PyTorch before it is shipped (training.export).

    input   images   uint8 [N, 32, 32, 3], RGB
    output  logits   float32 [N, 10]
"""

from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual, MobileNetV2

from app.network import Preprocessed

OPSET, IR_VERSION = 18, 10  # onnxruntime reads them since 1.20, the oldest that the service accepts
INPUT, OUTPUT = "images", "logits"


def build_graph(model: Preprocessed, height: int = 32, width: int = 32) -> onnx.ModelProto:
    """The graph of `model` in evaluation mode, checked for being well-formed."""
    network = model.network
    assert isinstance(network, MobileNetV2)
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
    hidden = graph.add("GlobalAveragePool", hidden)
    hidden = graph.add("Flatten", hidden)
    head = network.get_submodule("classifier.1")
    assert isinstance(head, nn.Linear)
    weight = graph.constant("classifier.1.weight", head.weight)
    graph.add("Gemm", hidden, weight, graph.constant("classifier.1.bias", head.bias), name=OUTPUT, transB=1)
    return graph.finish(
        helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", height, width, 3]),
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", head.out_features]),
    )


class _Graph:
    """Nodes and constants in the order in which they were added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Append a node; the name of its one output."""
        output = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Tensor) -> str:
        array = value.detach().float().contiguous().numpy()
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def finish(self, images: onnx.ValueInfoProto, logits: onnx.ValueInfoProto) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "mobilenet_v2", [images], [logits], list(self.constants.values()))
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
            case nn.BatchNorm2d():
                pass  # folded into the convolution before it
            case nn.ReLU6():
                low, high = (graph.constant(f"relu6_{bound}", torch.tensor(bound)) for bound in (0, 6))
                hidden = graph.add("Clip", hidden, low, high)
            case _:
                raise AssertionError(f"no ONNX operator is known for {path}.{name}, {type(layer).__name__}")
    return hidden


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
        # In double precision: the network is deep, and parity is wanted to 1e-4.
        gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        weight = layer.weight.double() * gain[:, None, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * gain
        return weight.float(), bias.float()
