"""The program of the processes in tests/training/fit/test_distributed.py: a tiny run, in which one rank may fail.

torchrun starts an interpreter for each of its ranks, and each takes seconds to import PyTorch. This program imports it
once and forks: with --processes its ranks, and as `serve` all runs that the lines of its standard input ask for.
"""

import argparse
import json
import os
import signal
import socket
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.training.tiny import TINY, TINY_OPTIONS, make_images, shallow
from training.config import Config
from training.data import cifar10
from training.data.cifar10 import LabelledImages, Split
from training.errors import TrainingError
from training.fit import distributed, initial_weights, run
from training.fit.run import Run

TRAIN, SELECT = make_images(30, seed=1), make_images(20, seed=2)
FROZEN = replace(TINY, batch_size=9, zoom=1.2, colour=0.2, label_smoothing=0.1)
TROUBLED_STEP = 3
LAST_WORDS_SECONDS = 3  # between the end of a rank that failed and SIGTERM for the others, which have their own errors


class Noting(Run):
    """A run with frozen norms that records this process's training images and the first step's gradients."""

    def __init__(self, folder: Path, world: distributed.World) -> None:
        super().__init__(folder, FROZEN, "random", TRAIN, SELECT, None, world)
        self.noted: dict[str, Tensor] = {}
        self.model.eval()
        self.model.train = lambda mode=True: self.model  # type: ignore[method-assign]

    def _step(self, images: Tensor, *rest: object) -> tuple[float, int]:
        result = super()._step(images, *rest)  # type: ignore[arg-type]
        assert not any(module.training for module in self.model.modules())
        if not self.noted:
            for name, value in self.model.network.named_parameters():
                assert value.grad is not None
                self.noted[f"gradients.{name}"] = value.grad.contiguous().clone()
        self.noted[f"images.{len(self.noted):04}"] = images.clone()
        return result


def note(folder: Path) -> None:
    with distributed.join("cpu") as world:
        noting = Noting(folder / "run", world)
        noting.fit()
        save_file(noting.noted, folder / f"rank{world.rank}.safetensors")


def train(folder: Path, config: Config = TINY) -> None:
    with distributed.join("cpu") as world:
        Run(folder, config, "random", TRAIN, SELECT, None, world).fit()


def command(folder: Path) -> None:
    """The same by `python -m training fit`."""
    from training.command_line import main  # which takes seconds, and the other programs do without

    images = LabelledImages(*(torch.cat(pair) for pair in zip(TRAIN, SELECT, strict=True)))
    cifar10.load = lambda *_, **__: images
    cifar10.split = lambda *_: Split(*torch.arange(50).split([30, 20, 0]))
    sys.argv = ["training", "fit", *TINY_OPTIONS, "--run-dir", str(folder), "--threads", "1", "--device", "cpu"]
    main()


def fork_ranks(processes: int) -> None:
    """Become one of that many ranks. The process that is none of them waits for all, and ends with 1 if one failed."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    ranks = set()
    for rank in range(processes):
        if not (pid := os.fork()):
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ |= {name: str(value) for name, value in places.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            return
        ranks.add(pid)
    signal.signal(signal.SIGALRM, lambda *_: [os.kill(pid, signal.SIGTERM) for pid in ranks])
    failed = False
    while ranks:
        pid, status = os.wait()
        ranks.remove(pid)
        if status:
            failed = True
            signal.alarm(LAST_WORDS_SECONDS)
    sys.exit(failed)


def hang() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # so that it can be ended
    while True:
        time.sleep(1)


def make_trouble(kind: str) -> None:
    """Let the last rank be killed, hang, or get SIGTERM in a step of the first epoch."""
    step, steps = Run._step, 0
    trouble = {
        "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "silent": hang,
        "stopped": lambda: os.kill(os.getpid(), signal.SIGTERM),
    }[kind]

    def troubled(self: Run, *rest: object) -> tuple[float, int]:
        nonlocal steps
        steps += 1
        if steps == TROUBLED_STEP and self.world.rank == self.world.size - 1:
            trouble()
        return step(self, *rest)  # type: ignore[arg-type]

    Run._step = troubled  # type: ignore[method-assign, assignment]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["note", "train", "command"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trouble", choices=["killed", "silent", "stopped"])
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--processes", type=int)
    options = parser.parse_args(arguments)
    if options.processes:
        fork_ranks(options.processes)
    torch.set_num_threads(1)
    initial_weights.mobilenet_v2 = shallow
    run.SAVE_EVERY_SECONDS = 60.0 if options.trouble == "stopped" else 0.0
    distributed.TIMEOUT = timedelta(seconds=options.timeout)
    if options.trouble:
        make_trouble(options.trouble)
    try:
        {"note": note, "train": train, "command": command}[options.what](options.folder)
    except TrainingError as error:
        sys.exit(f"{type(error).__name__}: {distributed.speaker()}{error}")


def serve() -> None:
    """For each line, {"arguments": [...], "stderr": path}, run `main` in a process and print its exit code."""
    for line in sys.stdin:
        asked = json.loads(line)
        if not (pid := os.fork()):
            for path, descriptor in ((os.devnull, 0), (os.devnull, 1), (asked["stderr"], 2)):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
            main(asked["arguments"])
            sys.exit()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        main(sys.argv[1:])
