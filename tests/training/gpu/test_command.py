"""`python -m training.gpu`, whole, on a CPU, with a tiny data set and few steps."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.training.tiny import shallow
from training.data import cifar10
from training.fit.run_folder import FinishedRun
from training.gpu import __main__ as command
from training.gpu import efficientnet_lite, learners
from training.gpu.efficientnet_lite import EfficientNetLite
from training.gpu.learners import Learner

Run = Callable[..., str]


def tiny_teacher(classes: int = 10) -> EfficientNetLite:
    return EfficientNetLite([(1, 8, 1, 2, 3), (2, 8, 2, 2, 5)], classes, head=16)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_data: None) -> Run:
    torch.manual_seed(0)
    monkeypatch.setattr(learners, "mobilenet_v2", shallow)
    monkeypatch.setattr(efficientnet_lite, "efficientnet_lite2", tiny_teacher)
    monkeypatch.setattr(efficientnet_lite, "read_imagenet", lambda _: tiny_teacher(1000).state_dict())
    monkeypatch.setattr(command, "TRAINING_SHA256", cifar10.load(Path(), train=True).digest())

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["training.gpu", *map(str, arguments)])
        command.main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def packed(run: Run, tmp_path: Path) -> Path:
    photographs, start = tmp_path / "photographs", tmp_path / "start.safetensors"
    for number in range(6):
        for label in ("cat", "truck", "other/chair"):
            path = photographs / label / f"n0000000{number % 2}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = tuple(torch.randint(0, 256, (3,)).tolist())
            Image.effect_noise((64, 64), 80).convert("RGB").point(lambda value, c=colour[0]: (value + c) % 256).save(
                path
            )
    save_file({name: one.contiguous() for name, one in shallow(command.STUDENTS["large"]).state_dict().items()}, start)
    out = tmp_path / "packed"
    run("pack", "--photographs", photographs, "--imagenet", "a.whl", "--start", start, "--out", out)
    return out


SHORT = ("--teacher-seconds", 0.5, "--seconds", 0.5, "--batch", 24, "--teacher-side", 32, "--device", "cpu")


def test_a_teacher_and_students_are_trained_and_leave_finished_runs(run: Run, packed: Path, tmp_path: Path) -> None:
    printed = run("train", packed, "--out", tmp_path / "runs", *SHORT, "--commit", "abc")
    assert "teacher: held out" in printed
    for name, side in (("large", 4), ("small", 2)):
        finished = FinishedRun.read(tmp_path / "runs" / name)
        assert finished.config.enlarge == side
        assert finished.environment["git_commit"] == "abc"
        assert finished.history
        assert finished.gpu
        assert finished.gpu["steps"] >= 1
        assert finished.photographs > 0


def test_finished_runs_teach_too(run: Run, packed: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run("train", packed, "--out", runs, *SHORT, "--students", "small")
    small = runs / "small"
    printed = run("train", packed, "--out", runs, *SHORT, "--students", "large", "--teacher", small, "--share", 0.5)
    assert f"{small}: held out" in printed
    assert "start: held out" not in printed
    assert "share in the teachers' mean: 0.5" in printed
    with pytest.raises(SystemExit, match="error: --teacher"):
        run("train", packed, "--out", tmp_path / "others", *SHORT, "--teacher", packed)
    with pytest.raises(SystemExit, match="holds a finished student: --again goes on with it"):
        run("train", packed, "--out", runs, *SHORT)
    with pytest.raises(SystemExit, match="it must be from 2 to the"):
        run("train", packed, "--out", tmp_path / "others", *SHORT[:4], "--batch", 10**6)


def test_the_teacher_is_trained_once(run: Run, packed: Path, tmp_path: Path) -> None:
    run("train", packed, "--out", tmp_path / "runs", *SHORT)
    before = (tmp_path / "runs/teacher.safetensors").read_bytes()
    printed = run("train", packed, "--out", tmp_path / "runs", *SHORT, "--students", "small", "--again")
    assert (tmp_path / "runs/teacher.safetensors").read_bytes() == before
    assert " teacher " not in printed


def test_a_training_that_sigterm_ended_goes_on(
    run: Run, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def signal_in(stage: str) -> Callable[[Learner, float], None]:
        def signalled(learner: Learner, decay: float, average: Callable[..., None] = Learner.average) -> None:
            average(learner, decay)
            if learner.name == stage:
                os.kill(os.getpid(), signal.SIGTERM)

        return signalled

    for stage, states in (("teacher", ["teacher.state.safetensors"]), ("small", ["students.state.safetensors"])):
        with monkeypatch.context() as context, pytest.raises(SystemExit) as stop:
            context.setattr(Learner, "average", signal_in(stage))
            run("train", packed, "--out", tmp_path / "runs", *SHORT, "--students", "small")
        assert stop.value.code == 143
        assert "seconds of training, which is saved: the same command goes on from there" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "runs").glob("*.state.*")] == states
    assert "goes on from here" in run("train", packed, "--out", tmp_path / "runs", *SHORT, "--students", "small")
    assert FinishedRun.read(tmp_path / "runs/small").gpu
    assert not list((tmp_path / "runs").glob("*.state.*"))


def test_a_run_that_goes_on_names_its_own_weights_as_initial(run: Run, packed: Path, tmp_path: Path) -> None:
    run("train", packed, "--out", tmp_path / "runs", *SHORT, "--students", "small")
    first = FinishedRun.read(tmp_path / "runs/small")
    run("train", packed, "--out", tmp_path / "runs", *SHORT, "--students", "small", "--again")
    assert FinishedRun.read(tmp_path / "runs/small").initial_weights == f"sha256:{first.weights_sha256}"


def test_photographs_that_are_held_out_are_not_packed(packed: Path) -> None:
    names = json.loads((packed / "packed.json").read_bytes())["photographs"]
    assert {name.split("/")[1][:9] for name in names if name.startswith("cat")} < {"n00000000", "n00000001"}


def test_damaged_images_are_refused(run: Run, packed: Path, tmp_path: Path) -> None:
    labels = packed / "cifar10_labels.npy"
    content = bytearray(labels.read_bytes())
    content[-1] ^= 1
    labels.write_bytes(bytes(content))
    with pytest.raises(SystemExit, match="does not hold the official training images"):
        run("train", packed, "--out", tmp_path / "runs", *SHORT)


def test_a_loss_that_is_not_finite_ends_the_run(
    run: Run, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.gpu.loop.CHECK_EVERY", 1)
    weights = load_file(packed / "lite2.safetensors")
    save_file({name: one * float("nan") for name, one in weights.items()}, packed / "lite2.safetensors")
    with pytest.raises(SystemExit, match="not finite"):
        run("train", packed, "--out", tmp_path / "runs", *SHORT)


@pytest.mark.parametrize("name", ["cifar10_labels.npy", "photographs_labels.npy", "lite2.safetensors", "packed.json"])
@pytest.mark.parametrize("content", [None, b"", b"damaged"])
def test_a_missing_or_damaged_file_is_one_line(
    run: Run, packed: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    (packed / name).unlink()
    if content is not None:
        (packed / name).write_bytes(content)
    with pytest.raises(SystemExit, match=r"error: .*missing or damaged"):
        run("train", packed, "--out", tmp_path / "runs", *SHORT)


def test_students_that_are_not_there_cannot_go_on(run: Run, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="missing or damaged"):
        run("train", packed, "--out", tmp_path / "runs", *SHORT, "--again")
