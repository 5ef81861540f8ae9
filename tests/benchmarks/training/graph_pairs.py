"""Compare the time of two bundles' graphs on one thread, in pairs: for one image, and for a batch.

python -m tests.benchmarks.training.graph_pairs OLD NEW     # folders of bundles
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime

from app.bundle.names import INPUT, LOGITS
from app.bundle.reader import Bundle

ROUNDS, RUNS, BATCH = 11, 100, 8


def graph_of(bundle: Bundle) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(bundle.read("model.onnx"), options, providers=["CPUExecutionProvider"])


def milliseconds(graph: onnxruntime.InferenceSession, image: np.ndarray) -> float:
    """The mean for an image, of RUNS images."""
    started = time.perf_counter()
    for _ in range(RUNS // len(image)):
        graph.run([LOGITS], {INPUT: image})
    return (time.perf_counter() - started) / (RUNS // len(image) * len(image)) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args()
    old, new = Bundle.load(options.old), Bundle.load(options.new)
    random = np.random.default_rng(0)
    graphs = {"old": graph_of(old), "new": graph_of(new)}
    cases = {f"{name}, thumbnail": (graph, 1, 32) for name, graph in graphs.items()}
    if photographs := new.manifest.photographs:
        cases["new, photograph"] = (graphs["new"], 1, photographs.height)
    cases |= {f"{name}, {BATCH} thumbnails": (graph, BATCH, 32) for name, graph in graphs.items()}
    inputs = {
        name: (graph, random.integers(0, 256, (count, side, side, 3), np.uint8))
        for name, (graph, count, side) in cases.items()
    }
    rounds = [{name: milliseconds(*case) for name, case in inputs.items()} for _ in range(ROUNDS + 1)][1:]
    for name in cases:
        like = f"old, {BATCH} thumbnails" if str(BATCH) in name else "old, thumbnail"
        ratio = statistics.median(one[name] / one[like] for one in rounds)
        print(f"{name}: {statistics.median(one[name] for one in rounds):.3f} ms an image, {ratio:.3f} times the old")


if __name__ == "__main__":
    main()
