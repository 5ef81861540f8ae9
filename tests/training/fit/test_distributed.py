"""Real processes over gloo: together they compute what one process computes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file

from tests.training.conftest import Answer
from tests.training.distributed_run import SELECT, TRAIN, TROUBLED_STEP, Noting
from tests.training.tiny import TINY, shallow
from training import command_line as program
from training.errors import TrainingError
from training.fit import initial_weights
from training.fit.distributed import LeaderFailed, World, join
from training.fit.run import Run
from training.fit.run_folder import HISTORY, RUN, STATE, WEIGHTS

ROOT = Path(__file__).parents[3]


PROGRAM = (sys.executable, "-m", "tests.training.distributed_run")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *PROGRAM[1:])


ENVIRONMENT = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


class Done(NamedTuple):
    returncode: int
    stderr: str


Fork = Callable[..., Done]


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fork]:
    """Run tests/training/distributed_run.py in two processes, without torchrun, which takes seconds."""
    errors = tmp_path_factory.mktemp("fork") / "errors"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*PROGRAM, "serve"], cwd=ROOT, env=ENVIRONMENT, **pipes) as server:

        def run_forked(*arguments: object) -> Done:
            errors.write_text("")
            asked = {"arguments": [*map(str, arguments), "--processes", "2"], "stderr": str(errors)}
            print(json.dumps(asked), file=server.stdin, flush=True)
            return Done(int(server.stdout.readline()), errors.read_text())

        yield run_forked
        server.stdin.close()


@pytest.fixture(autouse=True)
def shallow_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial_weights, "mobilenet_v2", shallow)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    command = [*TORCHRUN, "command", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validation accuracy") == 1  # one of them speaks
    return folder


@pytest.fixture(scope="module")
def killed(fork: Fork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run after one of its processes was killed."""
    folder = tmp_path_factory.mktemp("killed")
    done = fork("train", folder, "--trouble", "killed")
    assert done.returncode != 0
    (complaint,) = (line for line in done.stderr.splitlines() if line.startswith("TrainingError: "))
    assert "rank 0: " in complaint and "goes on from the last saved step" in complaint
    assert not (folder / WEIGHTS).exists()
    return folder


def worlds(size: int) -> Iterator[World]:
    """The worlds of all ranks of a run in `size` processes, without the processes."""
    for rank in range(size):
        world = World()
        world.rank, world.size = rank, size
        yield world


@given(st.integers(0, 5000), st.integers(1, 64))
def test_parts_are_everything_once_and_of_nearly_one_size(count: int, size: int) -> None:
    parts = [list(range(count))[world.part(count)] for world in worlds(size)]
    assert [number for part in parts for number in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_with_norms_frozen_gradients_are_those_of_one_process(fork: Fork, tmp_path: Path) -> None:
    alone = Noting(tmp_path / "alone", World())
    alone.fit()
    done = fork("note", tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2))

    # Every image of every batch, augmented as it is in one process, is seen by one rank, once: nine are 4 and 5.
    steps = [name for name in alone.noted if name.startswith("images.")]
    assert len(steps) == 2 * 3
    for step in steps:
        assert len(first[step]) == 4
        assert torch.equal(torch.cat([first[step], second[step]]), alone.noted[step])

    gradients = {name: value for name, value in alone.noted.items() if name.startswith("gradients.")}
    for rank in (first, second):
        for name, value in gradients.items():
            assert value.norm() > 0
            assert (rank[name] - value).norm() <= 1e-5 * value.norm(), name


def test_what_two_processes_leave_is_what_one_leaves(whole: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, TINY, "random", TRAIN, SELECT)
    run.fit()
    assert {path.name for path in whole.iterdir()} == {path.name for path in tmp_path.iterdir()}
    record, alone = (json.loads((folder / RUN).read_text()) for folder in (whole, tmp_path))
    hardware = record.pop("environment")["hardware"]
    assert hardware == alone.pop("environment")["hardware"] | {"processes": 2}
    assert record == alone and record["continued"] == []
    # Sums are over all ranks: the first epoch begins with the same weights, and its norms see fewer images.
    losses = [float((folder / HISTORY).read_text().splitlines()[1].split(",")[2]) for folder in (whole, tmp_path)]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


def test_a_killed_run_goes_on_with_the_same_bits(fork: Fork, killed: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    done = fork("train", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert json.loads((tmp_path / RUN).read_text())["continued"] == []


def test_a_killed_run_goes_on_in_one_process(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    Run(tmp_path, TINY, "random", TRAIN, SELECT).fit()
    assert len((tmp_path / HISTORY).read_text().splitlines()) == 1 + TINY.epochs
    record = json.loads((tmp_path / RUN).read_text())
    assert record["environment"]["hardware"]["processes"] == 2
    (later,) = record["continued"]
    assert (later["epoch"], later["step"]) == (0, TROUBLED_STEP - 1)
    assert later["hardware"]["processes"] == 1


def test_all_stop_and_save_after_the_step_in_which_one_gets_sigterm(fork: Fork, tmp_path: Path) -> None:
    done = fork("train", tmp_path, "--trouble", "stopped")
    assert done.returncode != 0
    assert f"Stopped: rank 0: interrupted after step {TROUBLED_STEP} of 6, which is saved" in done.stderr, done.stderr
    assert "LeaderFailed: rank 1: rank 0 has stopped" in done.stderr
    assert Run(tmp_path, TINY, "random", TRAIN, SELECT).steps_done == TROUBLED_STEP


def test_a_silent_rank_does_not_hang_the_run(fork: Fork, tmp_path: Path) -> None:
    done = fork("train", tmp_path, "--trouble", "silent", "--timeout", 5)  # starting must fit in, too
    assert done.returncode != 0
    assert "TrainingError: rank 0: another process of this run does not answer (" in done.stderr, done.stderr
    assert (tmp_path / STATE).exists() and not (tmp_path / WEIGHTS).exists()


def test_what_the_leader_meets_is_said_by_it_alone(fork: Fork, tmp_path: Path) -> None:
    (tmp_path / RUN).write_text("{}")
    done = fork("train", tmp_path)
    assert done.returncode != 0
    assert "TrainingError: rank 0: " in done.stderr and "run.json is damaged" in done.stderr
    assert "TrainingError: rank 1: " not in done.stderr


def test_the_others_end_without_a_word(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Answer], tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise LeaderFailed("rank 0 has failed")

    monkeypatch.setattr(program, "join", fail)
    assert command("fit", "--run-dir", tmp_path) == (1, "", "")


def test_torchrun_is_for_fit(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Answer]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for name in ("all", "evaluate", "export"):
        said = f"error: rank 1: {name} runs in one process: torchrun is for fit\n"
        assert command(name) == (1, "", said)


def test_a_batch_must_have_two_images_for_every_process(tmp_path: Path) -> None:
    *_, world = worlds(5)
    with pytest.raises(TrainingError, match="--batch-size is 9: for 5 processes it must be at least 10"):
        Run(tmp_path, replace(TINY, batch_size=9), "random", TRAIN, SELECT, None, world)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(TrainingError, match=r"--device cuda: .* 0 GPUs"), join("cuda"):
        pass
    with join("auto") as world:
        assert world.device == torch.device("cpu") and world.leads
