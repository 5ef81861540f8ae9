"""Compare training in several processes with training in one: speed, accuracy, and an estimate for GPUs.

    python -m tests.benchmarks.training.distributed speed --data-dir data
    python -m tests.benchmarks.training.distributed accuracy --data-dir data --init imagenet
    python -m tests.benchmarks.training.distributed estimate --images-per-second 90

speed: one process with N threads against N processes with one thread each, on the same batches, in alternating order.
accuracy: the same small run by one process and by several, for each seed. Batch norms are trained, the images are a
part of the training split, and the accuracy is that on the 5,000 held-out images.
estimate: a calculation from stated assumptions, not a measurement; see docs/distributed-training.md.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from training.config import IMAGENET_MEAN, IMAGENET_STD, Config
from training.data.cifar10 import load, split
from training.evaluate.network_outputs import predict_logits
from training.fit.checkpoint import Progress
from training.fit.distributed import join
from training.fit.run import Run

TCMALLOC = [*Path("/usr/lib").glob("*-linux-gnu/libtcmalloc_minimal.so.4")]
# The configuration of the figures in docs/distributed-training.md: the default at the time of the measurement.
MEASURED = Config(stem_stride=1, stage2_stride=1, enlarge=1, epochs=7, zoom=1.0, colour=0.0)
WARM_UP = 5  # steps that are not timed


class Enough(Exception):
    """Raised to end training after the timed steps."""


def speed_of_one_side(options: argparse.Namespace) -> None:
    """The work of each process. Rank 0 prints the images a second of all processes together."""
    torch.set_num_threads(options.threads)
    clock = 0.0

    def watch(_: Progress, step: int, *__: float) -> None:
        nonlocal clock
        if step == WARM_UP:
            clock = time.perf_counter()
        if step == WARM_UP + options.steps:
            clock = time.perf_counter() - clock
            raise Enough

    with tempfile.TemporaryDirectory() as folder, join("cpu") as world:
        images = load(options.data_dir, train=True, download=False)
        parts = split(images.labels, 0)
        config = replace(MEASURED, precision=options.precision, batch_size=options.batch_size)
        run = Run(Path(folder), config, "random", images.take(parts.train), images.take(parts.select), world=world)
        try:
            run.fit(watch)
        except Enough:
            if world.leads:
                print(options.steps * config.batch_size / clock)


def accuracy_of_one_side(options: argparse.Namespace) -> None:
    """The work of each process. Rank 0 prints how many of the 5,000 held-out images are classified correctly."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, join("cpu") as world:
        images = load(options.data_dir, train=True, download=False)
        parts = split(images.labels, 0)
        chosen = parts.train[torch.randperm(len(parts.train), generator=torch.Generator().manual_seed(0))]
        train, select = images.take(chosen[: options.images]), images.take(parts.select[:100])
        strides = {"stem_stride": options.stem_stride, "stage2_stride": options.stage2_stride}
        config = replace(MEASURED, epochs=options.epochs, seed=options.seed, batch_size=options.batch_size, **strides)
        run = Run(Path(folder), config, options.init, train, select, world=world)
        run.fit()
        if world.leads:
            held_out = images.take(torch.cat([parts.select, parts.calibrate]))
            run.model.network.load_state_dict(run.averaged)
            print(int((predict_logits(run.model, held_out.images).argmax(1) == held_out.labels).sum()))


def measure(what: str, processes: int, threads: int, options: argparse.Namespace, **more: object) -> float:
    """Run one side in processes of its own. Returns the figure that it prints."""
    named = {key: value for key, value in vars(options).items() if key not in ("what", "side")} | more
    arguments = [text for key, value in named.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [
        sys.executable,
        "-m",
        *(torchrun if processes > 1 else []),
        "tests.benchmarks.training.distributed",
        what,
    ]
    command += [*arguments, "--side", "--threads", str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if TCMALLOC:
        environment["LD_PRELOAD"] = str(TCMALLOC[0])
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout)


def speed(options: argparse.Namespace) -> None:
    count = options.processes
    ratios = []
    for pair in range(options.pairs):
        sides = {(1, count): 0.0, (count, 1): 0.0}
        for processes, threads in sorted(sides, reverse=pair % 2 == 1):
            sides[processes, threads] = measure("speed", processes, threads, options)
        one, several = sides.values()
        ratios.append(several / one)
        print(
            f"1 process, {count} threads: {one:6.1f} images/s   "
            f"{count} processes, 1 thread each: {several:6.1f} images/s   ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def accuracy(options: argparse.Namespace) -> None:
    found: dict[int, list[float]] = {1: [], options.processes: []}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for processes, results in found.items():
            results.append(measure("accuracy", processes, 1, options, seed=seed) / 50)
        one, several = (results[-1] for results in found.values())
        print(f"seed {seed}: 1 process {one:.2f} %   {options.processes} processes {several:.2f} %", flush=True)
    if options.seeds == 1:
        return
    for processes, results in found.items():
        print(f"{processes} processes: mean {statistics.mean(results):.2f} %, s.d. {statistics.stdev(results):.2f}")
    differences = [several - one for one, several in zip(*found.values(), strict=True)]
    error = statistics.stdev(differences) / math.sqrt(options.seeds)
    print(f"several minus one: {statistics.mean(differences):+.2f} points, standard error {error:.2f}")


def estimate(options: argparse.Namespace) -> None:
    """A roofline estimate: a step moves all activations through the GPU's memory several times and starts kernels."""
    values, layers = count_activations()
    config = MEASURED
    images = 45_000 * config.epochs
    hours = images / options.images_per_second / 3600
    print(f"this machine, {options.images_per_second:.0f} images/s (measured): {config.epochs} epochs in {hours:.2f} h")
    print("ESTIMATE for GPUs, not measured, with these assumptions:")
    print(f"  {values / 1e6:.2f} M activations an image (counted), each moved {options.passes:g} times in 2 bytes")
    print(f"  {options.efficiency:.0%} of the memory's bandwidth is reached")
    print(f"  {layers} layers (counted), {options.kernels:g} kernels each a step, {options.launch_us:g} us a kernel")
    print(f"  one core augments {options.augment:,.0f} images/s, and the GPU waits for it")
    print(f"  gradients (9 MB) are exchanged at {options.link:g} GB/s, after the step; 1 ms for everything else")
    print("  the start, validation and saving take no time")
    for name, bandwidth, price in (("L4, 300 GB/s", 300e9, 0.8), ("A100, 1555 GB/s", 1555e9, 2.0)):
        for gpus, batch in ((1, 64), (8, 64), (8, 512)):
            each = batch / gpus
            moved = each * values * 2 * options.passes / (bandwidth * options.efficiency)
            launched = layers * options.kernels * options.launch_us * 1e-6
            exchanged = 2 * (gpus - 1) / gpus * 9e6 / (options.link * 1e9)
            rate = batch / (max(moved, launched) + each / options.augment + exchanged + 1e-3)
            seconds = images / rate
            print(
                f"{gpus} x {name}, batch {batch}: {rate:,.0f} images/s, {config.epochs} epochs in {seconds:,.0f} s, "
                f"${seconds / 3600 * gpus * price:.2f} at ${price:.2f} a GPU hour"
            )


def count_activations() -> tuple[int, int]:
    """The number of values in the outputs of all layers for one image, and the number of layers."""
    from app.network.mobilenet import Preprocessed, mobilenet_v2

    model = Preprocessed(mobilenet_v2(MEASURED.architecture), IMAGENET_MEAN, IMAGENET_STD).eval()
    sizes: list[int] = []
    for module in model.modules():
        if not [*module.children()] and not isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda _, __, output: sizes.append(output.numel()))
    with torch.inference_mode():
        model(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    return sum(sizes), len(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    for name in ("speed", "accuracy"):
        kind = kinds.add_parser(name)
        kind.add_argument("--data-dir", type=Path, default=Path(os.environ.get("CIFAR10_DIR", "data")))
        kind.add_argument("--processes", type=int, default=2)
        kind.add_argument("--batch-size", type=int, default=64, help="of all processes together")
        kind.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
        kind.add_argument("--threads", type=int, help=argparse.SUPPRESS)
        if name == "speed":
            kind.add_argument("--steps", type=int, default=20, help="timed steps for each side of a pair")
            kind.add_argument("--pairs", type=int, default=3)
            kind.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
        else:
            kind.add_argument("--init", default="imagenet")
            kind.add_argument("--images", type=int, default=5000, help="training images")
            kind.add_argument("--epochs", type=int, default=4)
            kind.add_argument("--stem-stride", type=int, default=1, help="2 and 2: 6 M multiply-adds, last map 1x1")
            kind.add_argument("--stage2-stride", type=int, default=2, help="with 1 before: 24.5 M, last map 2x2")
            kind.add_argument("--seeds", type=int, default=5)
            kind.add_argument("--first-seed", type=int, default=0)
            kind.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    kind = kinds.add_parser("estimate")
    kind.add_argument("--images-per-second", type=float, required=True, help="measured here, for the first line")
    kind.add_argument("--passes", type=float, default=6, help="reads and writes of an activation, forward and backward")
    kind.add_argument("--efficiency", type=float, default=0.5)
    kind.add_argument("--kernels", type=float, default=4, help="for each layer and step, with those of the optimizer")
    kind.add_argument("--launch-us", type=float, default=10, help="microseconds to start a kernel from Python")
    kind.add_argument("--augment", type=float, default=20_000, help="images/s of one core")
    kind.add_argument("--link", type=float, default=10, help="GB/s between GPUs")
    options = parser.parse_args()
    if options.what == "estimate":
        estimate(options)
    elif options.side:
        {"speed": speed_of_one_side, "accuracy": accuracy_of_one_side}[options.what](options)
    else:
        del options.threads
        if options.what == "accuracy":
            del options.seed
        {"speed": speed, "accuracy": accuracy}[options.what](options)


if __name__ == "__main__":
    main()
