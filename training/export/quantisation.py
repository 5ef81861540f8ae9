"""A network's graph with 8-bit integers in place of floats, by ONNX Runtime's own static quantisation.

    content = quantised(graph, images)

Post-training quantisation (Jacob et al. 2018, arXiv:1712.05877): weights int8 with a scale for each filter, activations
uint8 with one scale, from the range that they have on `images`. Nothing is trained. Floats stay in the first two
blocks, where integers cost accuracy and save no time, and in the last layer and the class maps. ONNX Runtime could not
quantise the first convolution anyway, because of the Resize before it.
"""

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from torch import Tensor

from app.bundle.manifest import MOST_TOLERANCE, TOLERANCE
from app.bundle.names import CLASS_MAPS, INPUT
from app.network.mobilenet import Preprocessed
from training.errors import TrainingError
from training.evaluate.network_outputs import predict_logits
from training.export.graph import run_graph, takes_any_size

CALIBRATION, WEIGHT_BITS, ACTIVATIONS = "minmax", 8, "uint8"
OPERATORS = ["Conv", "Add", "Clip"]
FLOATS = 3  # convolutions: one, and two of the block after it
BATCH = 32
AGREEMENT = 0.95  # least share of images to which the graph gives the float network's label
MEANS = 1e-4  # largest allowed difference between the means of the class maps and the logits


def quantised(graph: bytes, images: npt.NDArray[np.uint8]) -> bytes:
    """The graph of `training.export.graph` with integers, for ranges on images uint8 [N, side, side, 3]."""
    model = onnx.load_from_string(graph)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    kept = [*(node.name for node in convolutions[:FLOATS]), CLASS_MAPS]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scales = {node.input[1]: _ranges(weights[node.input[1]]) for node in convolutions if node.name not in kept}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantised.onnx"
        logging.disable()  # it advises to fold what is folded
        try:
            quantize_static(
                model,
                path,
                _Batches(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS,
                nodes_to_exclude=kept,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"TensorQuantOverrides": scales},
            )
        finally:
            logging.disable(logging.NOTSET)
        return path.read_bytes()


def check_quantised(model: Preprocessed, graph: bytes, images: Tensor, *, any_size: bool) -> float:
    """The share of images to which the graph of integers gives the same label as the float network in PyTorch.

    Raises TrainingError when it is less than AGREEMENT, when the class maps do not mean the logits, and when the graph
    takes other sizes than the evaluation had.
    """
    if takes_any_size(graph) != any_size:
        raise TrainingError("the graph takes photographs: evaluate the run with --photographs")
    pixels = images.numpy()
    logits, maps = run_graph(graph, pixels), run_graph(graph, pixels, CLASS_MAPS)
    difference = float(np.abs(maps.mean((2, 3)) - logits).max())
    if not difference < MEANS:
        raise TrainingError(f"the means of the class maps differ from the logits by {difference:.2g}")
    same = float((logits.argmax(1) == predict_logits(model, images).numpy().argmax(1)).mean())
    if not same >= AGREEMENT:
        raise TrainingError(
            f"the graph of integers gives {same:.1%} of {len(images)} images the label that the float network gives, "
            f"{AGREEMENT:.0%} is needed: nothing was written"
        )
    return same


def rounding_tolerance(graph: bytes, images: Sequence[npt.NDArray[np.uint8]]) -> float:
    """How far a logit of a graph of integers may be off on another processor, found with images [H, W, 3].

    The last digits of a float, before it becomes an integer, decide which way it rounds, and they depend on the
    processor. The same graph without ONNX Runtime's integer operators rounds in other places, so the largest
    difference between both is taken. Raises TrainingError when it is more than a manifest allows.
    """
    pixels = np.stack(images)
    found = float(np.abs(run_graph(graph, pixels) - run_graph(graph, pixels, optimised=False)).max())
    if found > MOST_TOLERANCE:
        raise TrainingError(f"logits change by {found:.2g} with the way of rounding, {MOST_TOLERANCE} is allowed")
    return max(TOLERANCE, math.ceil(100 * found) / 100)


class _Batches(CalibrationDataReader):
    def __init__(self, images: npt.NDArray[np.uint8]) -> None:
        self._batches: Iterator[npt.NDArray[np.uint8]] = iter(np.split(images, range(BATCH, len(images), BATCH)))

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:  # type: ignore[override]
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _ranges(weight: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    """For each filter of float32 [filters, inputs, h, w], the float that becomes 127.

    Processors without VNNI add two neighbouring products of an activation and a weight in 16 bits, and cut off a sum
    that does not fit. So the sum of two neighbours becomes 127: with rounding at most 128, and 255 * 128 fits. That
    costs less than a bit of all weights, ONNX Runtime's `reduce_range`. Filters of one input are not added in pairs.
    """
    sizes = np.abs(weight).reshape(len(weight), -1)
    if weight.shape[1] > 1:
        sizes = np.add.reduceat(sizes, np.arange(0, sizes.shape[1], 2), axis=1)
    most = np.maximum(sizes.max(1), np.finfo(np.float32).tiny)  # of a filter of zeros
    return [{"quant_type": QuantType.QInt8, "axis": 0, "symmetric": True, "rmin": -one, "rmax": one} for one in most]
