"""The command line; every error that the user can correct is one line."""

import csv
import inspect
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from starlette.testclient import TestClient

from app.bundle.reader import Bundle
from app.main import create_app
from app.network.mobilenet import mobilenet_v2
from app.settings import Settings
from tests.conftest import DATA
from tests.training.conftest import TINY_OPTIONS, Answer
from tests.training.tiny import TINY
from training import command_line as program
from training.config import FIELDS
from training.data import cifar10
from training.data.cifar10 import LabelledImages, Split
from training.export.bundle import NAME
from training.fit.run import Run

Command = Callable[..., Answer]


BANNER = ("run", "device", "data", "network", "start")


def one_line(answer: Answer, code: int) -> str:
    """The error, which may come after the banner of a run."""
    assert answer.code == code and answer.out == "" and answer.err.endswith("\n")
    *banner, error = answer.err.splitlines()
    assert tuple(line.split()[0] for line in banner) == BANNER[: len(banner)]
    assert error.startswith("error: ")
    return error


@pytest.fixture
def everything(tmp_path: Path, tiny_data: None, quick_pictures: None) -> list[str]:
    """The arguments of a quick `all` that writes to tmp_path."""
    places = {
        "--data-dir": tmp_path,
        "--run-dir": tmp_path / "run",
        "--test-reads": tmp_path / "test_reads.csv",
        "--bundle": tmp_path / "models" / NAME,
        "--threads": 1,
    }
    return ["all", *TINY_OPTIONS, *(str(word) for pair in places.items() for word in pair)]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "fit", lambda *_: pytest.fail("it trained"))


@pytest.fixture
def loadings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is loaded and split from now on."""
    calls: list[str] = []
    load, split = cifar10.load, cifar10.split

    def counted_load(*arguments: Any, train: bool, **options: Any) -> LabelledImages:
        calls.append("training" if train else "test")
        return load(*arguments, train=train, **options)

    def counted_split(*arguments: Any) -> Split:
        calls.append("split")
        return split(*arguments)

    monkeypatch.setattr(cifar10, "load", counted_load)
    monkeypatch.setattr(cifar10, "split", counted_split)
    return calls


def test_all_makes_a_bundle_from_images_that_it_loads_and_splits_once(
    command: Command, everything: list[str], loadings: list[str], tmp_path: Path
) -> None:
    answer = command(*everything)
    assert answer.code == 0
    assert sorted(loadings) == ["split", "test", "training"]
    *banner, epoch = answer.err.splitlines()
    assert [line.split()[0] for line in banner] == list(BANNER)
    assert banner[0].endswith(str(tmp_path / "run")) and banner[1].endswith("1 thread")
    assert banner[2].endswith(f"30 images to train on, 20 to validate with, from {tmp_path}")
    assert banner[4] == "start   new, 6 steps in 2 epochs"
    assert epoch.startswith("epoch 1: validation accuracy")
    fitted, evaluated, exported = answer.out.splitlines()
    assert "weights.safetensors: validation accuracy" in fitted and "after 2 epochs" in fitted
    bundle = Bundle.load(tmp_path / "models" / NAME)
    assert f"test accuracy {bundle.report.accuracy.value:.2%} (95 % interval" in evaluated
    assert f"{bundle.manifest.version}, digest {bundle.manifest.digest}" in exported
    with (tmp_path / "test_reads.csv").open() as file:
        reads = list(csv.DictReader(file))
    assert [read["images"] for read in reads] == ["all 20", "2 damaged"]
    assert {read["weights_sha256"] for read in reads} == {bundle.manifest.files["checkpoint.safetensors"]}

    # The same again is refused at once; with --force it neither trains nor reads the test set again.
    assert "exists: --force replaces it" in one_line(command(*everything), 1)
    again = command(*everything, "--force")
    assert again.code == 0 and Bundle.load(tmp_path / "models" / NAME).manifest.files == bundle.manifest.files
    assert len((tmp_path / "test_reads.csv").read_text().splitlines()) == 3


def test_a_bundle_lands_in_its_run_s_folder_and_can_be_served(
    command: Command, everything: list[str], tmp_path: Path
) -> None:
    place = everything.index("--bundle")
    del everything[place : place + 2]
    assert command(*everything, "--stem-stride", 1).code == 0
    folder, name = tmp_path / "run" / "bundle", "mobilenet_v2_cifar10_small"
    assert Bundle.load(folder).manifest.name == name
    assert f"{folder} exists" in one_line(command("export", "--run-dir", tmp_path / "run", "--no-download"), 1)

    with TestClient(create_app(Settings(model_dir=folder, inference_threads=1))) as client:
        content = (DATA / "cat.png").read_bytes()
        assert client.get("/model").json()["name"] == name
        assert client.post("/predict", content=content).json()["model"]["name"] == name
        assert client.post("/explain", content=content).headers["content-type"] == "image/png"  # a map of 2x2 places
        assert f'model_info{{name="{name}"' in client.get("/metrics").text
        # The protocol's names are the service's, not the bundle's: clients need not know which one is served.
        assert client.get("/v2/models/cifar10/ready").json() == {"name": "cifar10", "ready": True}


def test_what_can_be_refused_is_refused_before_training(
    command: Command, everything: list[str], tmp_path: Path, no_training: None
) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write --bundle" in one_line(command(*everything, "--bundle", tmp_path / "file" / "b"), 1)
    assert "cannot write --test-reads" in one_line(command(*everything, "--test-reads", tmp_path), 1)
    assert "is damaged" in one_line(command(*everything, "--near", tmp_path / "file"), 1)
    assert "name the folder that holds it" in one_line(command(*everything, "--fashion-mnist", tmp_path), 1)
    assert "--run-dir" in one_line(command(*everything, "--run-dir", tmp_path / "file" / "run"), 1)
    assert "cannot read --init" in one_line(command(*everything, "--init", tmp_path / "none"), 1)


@pytest.mark.parametrize("name", ["fit", "all"])
def test_missing_data_are_one_line(command: Command, tmp_path: Path, name: str, no_training: None) -> None:
    places = ["--run-dir", tmp_path / "run", "--data-dir", tmp_path]
    if name == "all":
        places += ["--bundle", tmp_path / "bundle", "--test-reads", tmp_path / "reads.csv"]
    assert "--data-dir must hold" in one_line(command(name, "--no-download", "--threads", 1, *places), 1)


def test_a_loss_that_is_not_finite_is_one_line(command: Command, everything: list[str], tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in mobilenet_v2(TINY.architecture).state_dict().items()}
    state["classifier.1.bias"] = torch.full((10,), float("inf"))
    save_file(state, tmp_path / "init.safetensors")
    said = one_line(command(*everything, "--init", tmp_path / "init.safetensors"), 1)
    assert "the loss became nan in epoch 1, step 1" in said
    assert not (tmp_path / "models" / NAME).exists()


def test_another_configuration_is_refused_by_its_field(command: Command, run_dir: Path) -> None:
    answer = command("fit", *TINY_OPTIONS, "--run-dir", run_dir, "--threads", 1, "--lr", "0.5")
    assert "lr is 0.5 here and 0.001 there" in one_line(answer, 1)


def test_commands_in_the_wrong_order_are_one_line(command: Command, run_dir: Path, tmp_path: Path) -> None:
    places = ["--threads", 1, "--data-dir", tmp_path, "--run-dir"]
    assert "holds no run" in one_line(command("evaluate", *places, tmp_path / "none"), 1)
    assert "holds no run" in one_line(command("export", *places, tmp_path / "none"), 1)
    (run_dir / "logits.safetensors").unlink()
    answer = command("export", *places, run_dir, "--bundle", tmp_path / "bundle")
    assert "was not evaluated" in one_line(answer, 1)
    (run_dir / "weights.safetensors").unlink()
    answer = command("evaluate", *places, run_dir, "--test-reads", tmp_path / "reads.csv")
    assert "is not finished" in one_line(answer, 1)
    assert not (tmp_path / "reads.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fit", "--epochs", "many"], 2, "Invalid value for '--epochs'"),
        (["fit", "--threads", "0"], 2, "Invalid value for '--threads'"),
        (["fit", "--momentum", "0.9"], 2, "No such option: --momentum"),
        (["fit", "--epochs"], 2, "--epochs"),
        (["evaluate", "surplus"], 2, "surplus"),
        (["fti"], 2, "No such command 'fti'. Did you mean 'fit'?"),
        (["fit", "--stem-stride", "3"], 1, "stem_stride is 3: it must be from 1 to 2"),
        (["fit", "--lr", "nan"], 1, "lr is nan: it must be from 0 to 10"),
        (["fit", "--photographs", "photographs"], 1, "--photographs needs --photograph-batch"),
    ],
)
def test_wrong_arguments_are_one_line(
    command: Command, arguments: list[str], code: int, said: str, no_training: None, tmp_path: Path
) -> None:
    error = one_line(command(*arguments), code)
    assert said in error
    assert code == 1 or "--help shows what is allowed" in error


def test_an_interrupt_is_one_line(command: Command, everything: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "fit", interrupt)
    assert "interrupted: the same command goes on" in one_line(command(*everything), 130)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_one_line_that_names_the_saved_step(
    command: Command, everything: list[str], monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    step = Run._step

    def no_more(*_: Any) -> None:
        raise KeyboardInterrupt

    def signalled(*arguments: Any) -> tuple[float, int]:
        os.kill(os.getpid(), number)
        return step(*arguments)

    with monkeypatch.context() as context:
        context.setattr(Run, "_step", signalled)
        said = one_line(command(*everything), code)
    assert "interrupted after step 1 of 6, which is saved: the same command goes on from there" in said
    monkeypatch.setattr(Run, "fit", no_more)
    assert command(*everything).err.splitlines()[4] == "start   resumed at step 1 of 6, in epoch 1 of 2"


@pytest.mark.parametrize(
    ("told", "said"),
    [(["run"], "No space left on device (run): free some"), ([], "No space left on device: free some")],
)
def test_a_full_disk_is_one_line(
    command: Command, everything: list[str], monkeypatch: pytest.MonkeyPatch, told: list[str], said: str
) -> None:
    def fill(*_: Any) -> None:
        raise OSError(28, "No space left on device", *told)

    monkeypatch.setattr(Run, "fit", fill)
    assert said in one_line(command(*everything), 1)


def test_without_a_command_it_shows_its_help(command: Command) -> None:
    answer = command()
    assert (answer.code, answer.err) == (0, "")
    assert "python -m training all " in answer.out
    for name in ("fit", "evaluate", "export", "all"):
        assert f"\n  {name} " in answer.out
    assert command("fit", "--help").code == 0


@pytest.mark.parametrize("name", ["fit_command", "all_command"])
def test_every_field_of_the_configuration_is_an_option(name: str) -> None:
    options = inspect.signature(getattr(program, name)).parameters
    assert {name: field.default for name, field in FIELDS.items()}.items() <= {
        option: parameter.default for option, parameter in options.items()
    }.items()


@pytest.mark.parametrize(("processes", "threads"), [("1", 3), ("2", 1), ("8", 1)])
def test_threads_default_to_the_cores_that_the_cgroup_grants_to_each_process(
    monkeypatch: pytest.MonkeyPatch, processes: str, threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("app.cores._cgroup_quota", lambda _: 3.5)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert program.default_threads() == threads
