"""Compare the speed of our training loop with the usual one: same network, batch and optimiser, on this machine.

    python -m tests.benchmarks.training.training_speed --data-dir data
    python -m tests.benchmarks.training.training_speed --data-dir data --sides resident usual --batch 480    # on a GPU

Ours: `training.fit.run`, with tcmalloc if it is installed, as in `make train`. bfloat16: ours with `--precision
bfloat16`, for CPUs that support it. Resident: `training.gpu`, whose images, views and averages live on the device, one
student without a teacher. Usual: torchvision's transforms for single images in the workers of a DataLoader, contiguous
memory, the system's allocator, AdamW with its defaults, on a GPU with autocast. Each side runs in its own process; the
order alternates between rounds. Prints images/s, and the median of the ratios within rounds.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from training.config import Precision

WARM_UP = 5  # steps that are not timed
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TCMALLOC = [*Path("/usr/lib").glob("*-linux-gnu/libtcmalloc_minimal.so.4")]


class Enough(Exception):
    """Raised to end training after the timed steps."""


def ours(data_dir: Path, steps: int, batch: int, precision: "Precision" = "float32") -> float:
    from training.config import Config
    from training.data.cifar10 import load, split
    from training.fit.checkpoint import Progress
    from training.fit.run import Run

    images = load(data_dir, train=True, download=False)
    parts = split(images.labels, 0)
    clock = 0.0

    def watch(progress: Progress, step: int, total: int, images_per_second: float) -> None:
        nonlocal clock
        if step == WARM_UP:
            clock = time.perf_counter()
        if step == WARM_UP + steps:
            clock = time.perf_counter() - clock
            raise Enough

    config = Config(precision=precision, batch_size=batch)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), config, "random", images.take(parts.train), images.take(parts.select))
        try:
            run.fit(watch)
        except Enough:
            return steps * config.batch_size / clock
    raise AssertionError("too few steps in the run")


def resident(data_dir: Path, steps: int, batch: int) -> float:
    from training.data.cifar10 import LabelledImages, load, split
    from training.gpu.__main__ import STUDENTS
    from training.gpu.learners import Learner, mobilenet
    from training.gpu.loop import Data, Recipe, train
    from training.gpu.state import State

    images = load(data_dir, train=True, download=False)
    none = LabelledImages(torch.empty(0, 64, 64, 3, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    data = Data(images.take(split(images.labels, 0).train), images.take(torch.arange(100)), none).to(DEVICE)
    learner = Learner("student", mobilenet(STUDENTS["large"], None), DEVICE, weight_decay=0.05)
    recipe = Recipe(seconds=1.0, lr=1e-3, thumbnails=batch, known=0, other=0, mixed=0.5)
    begun, calls = 0.0, itertools.count()

    def clock() -> float:
        """Called at the start, and after each step."""
        nonlocal begun
        step = next(calls)
        if step in (WARM_UP, WARM_UP + steps):
            _finish()
            if step == WARM_UP + steps:
                raise Enough
            begun = time.perf_counter()
        return 0.0

    with tempfile.TemporaryDirectory() as folder:
        try:
            train([learner], data, recipe, State(Path(folder) / "state", {}), say=lambda _: None, clock=clock)
        except Enough:
            return steps * batch / (time.perf_counter() - begun)
    raise AssertionError("too few steps in the run")


def _finish() -> None:
    """Wait for what the device was told to compute."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def usual(data_dir: Path, steps: int, batch: int) -> float:
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    from app.network.mobilenet import mobilenet_v2
    from training.config import IMAGENET_MEAN, IMAGENET_STD, Config

    config = Config()
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            transforms.RandomErasing(),
        ]
    )
    data = CIFAR10(str(data_dir), train=True, transform=transform)
    loader = DataLoader(data, batch_size=batch, shuffle=True, num_workers=os.cpu_count() or 2, drop_last=True)
    network = mobilenet_v2(config.architecture).to(DEVICE, memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    loss_of = torch.nn.CrossEntropyLoss()
    clock = 0.0
    for step, (images, labels) in enumerate(loader, 1):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=DEVICE.type == "cuda"):
            loss = loss_of(network(images.to(DEVICE)), labels.to(DEVICE))
        loss.backward()
        optimizer.step()
        loss.item()
        if step == WARM_UP:
            clock = time.perf_counter()
        if step == WARM_UP + steps:
            return steps * batch / (time.perf_counter() - clock)
    raise AssertionError("too few images")


SIDES = {"ours": ours, "usual": usual, "bfloat16": partial(ours, precision="bfloat16"), "resident": resident}


def measure(side: str, options: argparse.Namespace) -> float:
    environment = dict(os.environ)
    environment.pop("LD_PRELOAD", None)
    if side != "usual" and TCMALLOC:
        environment["LD_PRELOAD"] = str(TCMALLOC[0])
    command = [sys.executable, "-m", "tests.benchmarks.training.training_speed", "--side", side]
    command += ["--data-dir", str(options.data_dir), "--steps", str(options.steps), "--batch", str(options.batch)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--steps", type=int, default=25, help="timed steps for each side and round")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=["bfloat16", "ours", "usual"], help="two or more of them"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(SIDES[options.side](options.data_dir, options.steps, options.batch))
        return
    if not TCMALLOC:
        print("tcmalloc is not installed, so ours runs without it")
    rounds: list[dict[str, float]] = []
    for number in range(options.rounds):
        order = options.sides if number % 2 == 0 else options.sides[::-1]
        speed = {side: measure(side, options) for side in order}
        rounds.append(speed)
        print("   ".join(f"{side} {speed[side]:6.1f} images/s" for side in options.sides), flush=True)
    for side, other in itertools.combinations(options.sides, 2):
        ratios = [speed[side] / speed[other] for speed in rounds]
        goal = "; goal: at least 2" if (side, other) == ("ours", "usual") else ""
        print(
            f"{side} / {other}: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}){goal}"
        )


if __name__ == "__main__":
    main()
