"""Compare the time of two bundles' graphs for one image on one thread, in pairs.

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

ROUNDS, RUNS = 11, 100


def graph_of(bundle: Bundle) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(bundle.read("model.onnx"), options, providers=["CPUExecutionProvider"])


def milliseconds(graph: onnxruntime.InferenceSession, image: np.ndarray) -> float:
    """The mean of RUNS runs."""
    started = time.perf_counter()
    for _ in range(RUNS):
        graph.run([LOGITS], {INPUT: image})
    return (time.perf_counter() - started) / RUNS * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args()
    old, new = Bundle.load(options.old), Bundle.load(options.new)
    random = np.random.default_rng(0)
    cases = {"old, thumbnail": (graph_of(old), 32), "new, thumbnail": (graph_of(new), 32)}
    if photographs := new.manifest.photographs:
        cases["new, photograph"] = (cases["new, thumbnail"][0], photographs.height)
    inputs = {
        name: (graph, random.integers(0, 256, (1, side, side, 3), np.uint8)) for name, (graph, side) in cases.items()
    }
    rounds = [{name: milliseconds(*case) for name, case in inputs.items()} for _ in range(ROUNDS + 1)][1:]
    for name in cases:
        ratio = statistics.median(one[name] / one["old, thumbnail"] for one in rounds)
        print(f"{name}: {statistics.median(one[name] for one in rounds):.3f} ms, {ratio:.3f} times the old")


if __name__ == "__main__":
    main()
