"""Measure the shipped graph: its parity with PyTorch, and the time of preprocessing and class maps.

    python tests/benchmarks/training/graph.py --data-dir data

Goals: logits and maps differ by at most training.export.bundle.PARITY on 1,000 images of the selection split;
preprocessing takes less than 5 % of the time; class maps add less than 10 %. MODEL_DIR selects a bundle.
"""

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.torch import load as load_safetensors

from app.bundle.reader import Bundle
from app.network.mobilenet import Preprocessed, mobilenet_v2
from app.network.served import ServedNetwork
from app.settings import Settings
from training.data.cifar10 import load
from training.export.bundle import PARITY_IMAGES, check_parity
from training.export.graph import build_graph

PREPROCESSING = {"Transpose", "Cast", "Mul", "Sub"}
ROUNDS, RUNS_A_ROUND = 9, 300


def time_by_operator(graph: bytes, image: np.ndarray, runs: int = 300) -> Counter[str]:
    """Microseconds for each operator, from ONNX Runtime's profiler, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = os.path.join(folder, "profile")
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, {"images": image})
        events = json.loads(Path(session.end_profiling()).read_text())
    times: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]] += event["dur"]
    return times


def cost(graph: bytes, bare: bytes, image: np.ndarray) -> list[float]:
    """For each round, the time of `graph` divided by that of `bare`, minus one. Runs alternate, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(one, options, providers=["CPUExecutionProvider"]) for one in (graph, bare)]
    shares = []
    for _ in range(ROUNDS):
        seconds: list[list[float]] = [[], []]
        for _ in range(RUNS_A_ROUND):
            for times, session in zip(seconds, sessions, strict=True):
                started = time.perf_counter()
                session.run(["logits"], {"images": image})
                times.append(time.perf_counter() - started)
        shares.append(float(np.median(seconds[0]) / np.median(seconds[1])) - 1)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    options = parser.parse_args()
    bundle = Bundle.load(Settings().model_dir)
    manifest, graph = bundle.manifest, bundle.read("model.onnx")
    select = torch.tensor(json.loads(bundle.read("split.json"))["select"][:PARITY_IMAGES])
    images = load(options.data_dir, train=True).images[select]
    network = mobilenet_v2(manifest.architecture)
    network.load_state_dict(load_safetensors(bundle.read("checkpoint.safetensors")))
    model = Preprocessed(network, manifest.input.mean, manifest.input.std)
    for name, difference in check_parity(ServedNetwork(model), graph, images).items():
        print(f"largest difference of {name} on {len(images)} images: {difference:.2g}")
    times = time_by_operator(graph, images[:1].numpy())
    share = sum(times[name] for name in PREPROCESSING) / times.total()
    print(f"preprocessing: {share:.2%} of the graph's time")
    only_logits = build_graph(ServedNetwork(model))
    del only_logits.graph.output[1:], only_logits.graph.node[-2:], only_logits.graph.initializer[-1:]
    shares = cost(graph, only_logits.SerializeToString(), images[:1].numpy())
    print(f"class maps: {np.median(shares):+.2%} (median of {ROUNDS} rounds; ", end="")
    print(f"{min(shares):+.2%} to {max(shares):+.2%})")


if __name__ == "__main__":
    main()
