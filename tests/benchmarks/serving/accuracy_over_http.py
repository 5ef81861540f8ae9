"""Post every test image as a PNG to a running service, and compare the accuracy of the answers with the report.

    python tests/benchmarks/serving/accuracy_over_http.py --data-dir data --url http://127.0.0.1:8000

The exit code is 1 if the two differ by more than 0.05 percentage points. The script reads the test set, so it adds a
line to models/test_reads.csv.
"""

import argparse
import io
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from PIL import Image

from training.data.cifar10 import load
from training.evaluate.test_set_log import log_read

TOLERANCE = 0.0005


def png(pixels: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--test-reads", type=Path, default=Path("models/test_reads.csv"))
    parser.add_argument("--concurrency", type=int, default=8)
    options = parser.parse_args()
    test = load(options.data_dir, train=False)
    with httpx.Client(base_url=options.url, timeout=30) as client, ThreadPoolExecutor(options.concurrency) as pool:
        report = client.get("/metrics/report").raise_for_status().json()
        files = client.get("/model").raise_for_status().json()["files"]
        weights = files.get("checkpoint.safetensors", files["model.onnx"])  # of integers, the graph is all there is

        def ask(pixels: object) -> int:
            answer = client.post("/predict?top_k=1", content=png(pixels)).raise_for_status()
            return int(answer.json()["predictions"][0]["class_id"])

        started = time.perf_counter()
        answers = list(pool.map(ask, test.images.numpy()))
        seconds = time.perf_counter() - started
    right = sum(answer == label for answer, label in zip(answers, test.labels.tolist(), strict=True))
    accuracy, reported = right / len(answers), report["accuracy"]["value"]
    log_read(options.test_reads, weights, accuracy, f"all {len(test.labels)}")
    print(f"{len(answers)} images in {seconds:.0f} s ({len(answers) / seconds:.0f}/s)")
    print(f"accuracy over HTTP {accuracy:.4f}, in the report {reported:.4f}, difference {accuracy - reported:+.4f}")
    sys.exit(abs(accuracy - reported) > TOLERANCE)


if __name__ == "__main__":
    main()
