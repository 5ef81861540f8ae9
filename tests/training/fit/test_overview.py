"""`python -m training show`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.conftest import Answer
from tests.training.fit.test_run import SELECT, TRAIN, Killed, killer
from tests.training.fit.test_run_folder import change
from tests.training.tiny import TINY, shallow
from training.errors import TrainingError
from training.fit import initial_weights
from training.fit.overview import WIDTH, curve, read_overview
from training.fit.run import Run
from training.fit.run_folder import HISTORY, METRICS, RUN, STATE, FinishedRun

Command = Callable[..., Answer]


def test_a_finished_run_is_printed_and_drawn(command: Command, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # of the terminal
    answer = command("show", run_dir)
    assert (answer.code, answer.err) == (0, "")
    best = max(FinishedRun.read(run_dir).history, key=lambda row: row.validation_accuracy)
    said = " ".join(answer.out.split())
    assert f"run {run_dir} stands finished, 2 epochs best {best.validation_accuracy:.2%} validation" in said
    assert "latest step 6 at 20" in said and "network mobilenet_v2_cifar10" in said
    assert "epochs 2, batch_size 8" in said
    assert said.endswith(f"drawn: {run_dir}/accuracy_and_loss.png")
    *_, row, loss, accuracy, _ = answer.out.splitlines()
    assert (
        row.split()[0] == "2" and row.split()[5] == f"{FinishedRun.read(run_dir).history[-1].validation_accuracy:.2%}"
    )
    assert "█▁" in loss or "▁█" in loss
    assert accuracy.startswith("valid. accuracy")
    assert (run_dir / "accuracy_and_loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("after", "said"),
    [(1, "begun; nothing is saved yet"), (3, "0 of 2 epochs, and 2 steps"), (5, "1 of 2 epochs, and 1 step of")],
)
def test_a_run_that_goes_on_says_where_it_stands(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, said: str
) -> None:
    monkeypatch.setattr(initial_weights, "mobilenet_v2", shallow)
    monkeypatch.setattr("training.fit.run.SAVE_EVERY_SECONDS", 0.0)
    with pytest.raises(Killed):
        Run(tmp_path, TINY, "random", TRAIN, SELECT).fit(killer(after))
    answer = command("show", tmp_path)
    assert answer.code == 0 and said in answer.out
    assert (tmp_path / "accuracy_and_loss.png").exists() == (tmp_path / HISTORY).exists() == (after > 3)


def test_a_run_of_an_earlier_version_has_no_figures(run_dir: Path) -> None:
    (run_dir / METRICS).unlink()
    assert read_overview(run_dir).latest is None
    (run_dir / METRICS).write_text('{"step": 1, "epoch": 1, "train_loss": 0.5}\n')
    assert read_overview(run_dir).latest is None


def test_what_is_no_run_is_one_line(command: Command, tmp_path: Path) -> None:
    answer = command("show", tmp_path)
    assert answer == (1, "", f"error: {tmp_path} holds no run: `python -m training fit` makes one\n")


@pytest.mark.parametrize("name", [RUN, STATE])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"nothing of the kind"])
def test_a_damaged_run_is_one_line(run_dir: Path, name: str, content: bytes) -> None:
    change(run_dir / name, content)
    with pytest.raises(TrainingError, match="holds a damaged run") as error:
        read_overview(run_dir)
    assert "\n" not in str(error.value)


def test_a_curve_is_at_most_as_wide_as_a_line() -> None:
    assert curve([0.0, 1.0, 0.5]) == "▁█▅"
    assert curve([0.5]) == "▁"
    assert curve([float(value) for value in range(8)]) == "▁▂▃▄▅▆▇█"
    long = curve([float(value) for value in range(1000)])
    assert len(long) == WIDTH and list(long) == sorted(long)
