"""The shipped graph: its parity with PyTorch, and what share of its time is preprocessing.

    python tests/benchmarks/graph.py --data-dir data

Goals: logits within 1e-4 on 1,000 images of the selection split; preprocessing under 5 %.
"""

import argparse
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.torch import load as load_safetensors

from app.bundle import Bundle
from app.network import Preprocessed, mobilenet_v2
from app.settings import Settings
from training.data import load
from training.export import PARITY_IMAGES, check_parity

PREPROCESSING = {"Transpose", "Cast", "Mul", "Sub"}


def time_by_operator(graph: bytes, image: np.ndarray, runs: int = 300) -> Counter[str]:
    """Microseconds that ONNX Runtime's profiler counts for each kind of node, on one thread."""
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
    print(f"largest difference of a logit on {len(images)} images: {check_parity(model, graph, images):.2g}")
    times = time_by_operator(graph, images[:1].numpy())
    share = sum(times[name] for name in PREPROCESSING) / times.total()
    print(f"preprocessing: {share:.2%} of the graph's time")


if __name__ == "__main__":
    main()
