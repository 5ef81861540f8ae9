"""The training loop. Runs are compared by their weights' bytes: the same thread count must give the same bits."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from app.bundle.report import Epoch
from app.network.mobilenet import mobilenet_v2
from tests.training.tiny import TINY, lively_weights, make_images, shallow
from training.config import Config
from training.data.augment import BatchRandom
from training.data.cifar10 import LabelledImages
from training.errors import TrainingError
from training.fit import initial_weights
from training.fit.checkpoint import Progress
from training.fit.run import Run, _generator
from training.fit.run_folder import HISTORY, RUN, STATE, WEIGHTS
from training.fit.schedule import learning_rate
from training.fit.stop import Stopped

TRAIN, SELECT = make_images(30, seed=1), make_images(20, seed=2)
STEPS = 2 * 3  # two epochs of 30 images in batches of eight
ROOT = Path(__file__).parents[3]


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the loop may catch it."""


@pytest.fixture(autouse=True, scope="module")
def shallow_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(initial_weights, "mobilenet_v2", shallow)
        yield


def start(folder: Path, config: Config = TINY, init: str = "random", train: LabelledImages = TRAIN) -> Run:
    return Run(folder, config, init, train, SELECT)


def killer(after: int) -> Callable[..., None]:
    """A watcher that raises Killed after `after` steps."""
    seen = 0

    def watch(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            raise Killed

    return watch


def without_times(progress: Progress) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in progress.history]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[dict[str, Any]]]:
    torch.set_num_threads(1)  # fixtures of a module come before those of a test
    run = start(tmp_path_factory.mktemp("uninterrupted"))
    return run.fit().read_bytes(), without_times(run.progress)


@pytest.fixture
def save_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.fit.run.SAVE_EVERY_SECONDS", 0.0)


def test_the_same_run_gives_the_same_bits(tmp_path: Path, uninterrupted: tuple[bytes, list[dict[str, Any]]]) -> None:
    run = start(tmp_path)
    assert run.fit().read_bytes() == uninterrupted[0]
    assert without_times(run.progress) == uninterrupted[1]


def test_a_pinned_run_of_two_steps_still_has_its_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole network with every augmentation: an unintended change of the recipe changes a loss by several percent.

    The tolerances are twice what other instruction sets and numbers of threads change: by 1e-4 in the first step, then
    by 5e-3, since Adam moves a weight by the sign of its gradient, even where rounding decides that sign.
    """
    monkeypatch.setattr(initial_weights, "mobilenet_v2", mobilenet_v2)  # not the shallow one
    weights = load(lively_weights())
    weights["classifier.1.weight"] *= 100  # otherwise all losses are near log(10), whatever the images
    save_file(weights, tmp_path / "init.safetensors")
    config = replace(TINY, epochs=1, zoom=1.2, colour=0.2, ema_every=1, ema_decay=0.5, lr=1e-5)
    init = str(tmp_path / "init.safetensors")
    run = Run(tmp_path / "run", config, init, make_images(16, seed=1), make_images(20, seed=2))
    sums: list[float] = []
    run.fit(lambda progress, *_: sums.append(progress.loss_sum))
    (row,) = run.progress.history
    assert sums[0] / 8 == pytest.approx(36.4275, rel=3e-4)
    assert (sums[1] - sums[0]) / 8 == pytest.approx(41.892, rel=1e-2)
    assert row["validation_loss"] == pytest.approx(49.842, rel=1e-2)
    assert row["lr"] == pytest.approx(5e-6)


def test_another_seed_gives_other_bits(tmp_path: Path, uninterrupted: tuple[bytes, list[dict[str, Any]]]) -> None:
    assert start(tmp_path, replace(TINY, seed=1)).fit().read_bytes() != uninterrupted[0]


@pytest.mark.parametrize("after", [1, 4])
def test_a_run_killed_ends_with_the_same_bits(
    tmp_path: Path, after: int, uninterrupted: tuple[bytes, list[dict[str, Any]]], save_every_step: None
) -> None:
    with pytest.raises(Killed):
        start(tmp_path).fit(killer(after))
    run = start(tmp_path)
    assert run.fit().read_bytes() == uninterrupted[0]
    assert without_times(run.progress) == uninterrupted[1]


def test_a_run_killed_again_and_again_ends_with_the_same_bits(
    tmp_path: Path, uninterrupted: tuple[bytes, list[dict[str, Any]]], save_every_step: None
) -> None:
    kills = 0
    while True:
        try:
            weights = start(tmp_path).fit(killer(2))  # killed before its second step is saved
            break
        except Killed:
            kills += 1
    assert kills == STEPS - 1
    assert weights.read_bytes() == uninterrupted[0]


def test_a_killed_process_is_resumed(
    tmp_path: Path, uninterrupted: tuple[bytes, list[dict[str, Any]]], save_every_step: None
) -> None:
    program = f"""
import time, torch
from pathlib import Path
from tests.training.tiny import TINY, lively_weights, make_images, shallow
from training.fit import initial_weights, run as fit
torch.set_num_threads(1)
initial_weights.mobilenet_v2 = shallow
fit.SAVE_EVERY_SECONDS = 0.0
run = fit.Run(Path({str(tmp_path)!r}), TINY, "random", make_images(30, seed=1), make_images(20, seed=2))
run.fit(lambda _, step, *__: time.sleep(0 if step == 1 else 60))  # the first is saved, the second waits to be killed
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) as process:
        try:
            while not (tmp_path / STATE).exists() and process.poll() is None:
                time.sleep(0.005)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL  # and not finished, nor failed
    assert not (tmp_path / WEIGHTS).exists()
    assert start(tmp_path).fit().read_bytes() == uninterrupted[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [1, 3, 5])  # the third is the last of its epoch
def test_a_signal_saves_the_step_and_the_run_ends_with_the_same_bits(
    tmp_path: Path,
    uninterrupted: tuple[bytes, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    after: int,
) -> None:
    before, step = signal.getsignal(number), Run._step

    def signalled(run: Run, *rest: Any) -> tuple[float, int]:
        if run.steps_done + 1 == after:
            os.kill(os.getpid(), number)
        return step(run, *rest)

    with monkeypatch.context() as context:
        context.setattr(Run, "_step", signalled)
        with pytest.raises(Stopped, match=f"after step {after} of {STEPS}, which is saved") as stop:
            start(tmp_path).fit()
    assert stop.value.number == number
    assert signal.getsignal(number) == before
    run = start(tmp_path)
    assert run.steps_done == after
    assert run.fit().read_bytes() == uninterrupted[0]
    assert without_times(run.progress) == uninterrupted[1]


def test_a_signal_during_the_validation_is_heeded_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validate = Run._validate

    def validated(run: Run) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        assert start(tmp_path).steps_done == 3  # a SIGKILL that follows would cost no step
        return validate(run)

    monkeypatch.setattr(Run, "_validate", validated)
    with pytest.raises(Stopped, match="after step 4"):
        start(tmp_path).fit()
    assert (tmp_path / HISTORY).exists()


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def impatient(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path).fit(impatient)
    assert capfd.readouterr().err == "\nstopping after this step; Ctrl-C again stops at once\n"
    assert not (tmp_path / STATE).exists()


def test_a_finished_run_is_not_run_again(tmp_path: Path, uninterrupted: tuple[bytes, list[dict[str, Any]]]) -> None:
    start(tmp_path).fit()
    assert start(tmp_path).fit(killer(1)).read_bytes() == uninterrupted[0]


def test_history_has_a_row_an_epoch(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.fit()
    with (tmp_path / HISTORY).open() as file:
        rows = [
            Epoch.model_validate_json(json.dumps({k: float(v) for k, v in row.items()})) for row in csv.DictReader(file)
        ]
    assert rows == [Epoch.model_validate(row) for row in run.progress.history]
    assert [row.epoch for row in rows] == [1, 2]
    assert rows[0].lr == learning_rate(2, steps=STEPS, peak=TINY.lr, warmup=TINY.warmup)
    assert run.progress.cpu_seconds > 0


def test_the_training_loss_falls(tmp_path: Path) -> None:
    run = start(tmp_path, replace(TINY, epochs=6, cutout=0, shift=0))
    run.fit()
    losses = [row["train_loss"] for row in run.progress.history]
    assert losses[-1] < 0.8 * losses[0], losses


def test_the_shipped_weights_are_the_moving_average(tmp_path: Path) -> None:
    config = replace(TINY, ema_every=2, ema_decay=0.3)
    run = start(tmp_path, config)
    reference = {name: value.double() for name, value in run.model.network.state_dict().items()}

    def follow(_: Progress, steps: int, *__: Any) -> None:
        if steps % 2 == 0:
            update = steps // 2
            decay = min(0.3, (1 + update) / (10 + update))
            for name, value in run.model.network.state_dict().items():
                reference[name] = decay * reference[name] + (1 - decay) * value.double()

    weights = load_file(run.fit(follow))
    for name, value in weights.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), reference[name], rtol=1e-5, atol=1e-6)
    assert weights["features.0.1.num_batches_tracked"] == STEPS


def test_validation_is_of_the_averaged_weights_and_leaves_the_live_ones(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.fit()
    live = {name: value.clone() for name, value in run.model.network.state_dict().items()}
    logits = run._validate()
    assert all(torch.equal(value, live[name]) for name, value in run.model.network.state_dict().items())
    run.model.network.load_state_dict(run.averaged)
    run.model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(logits, run.model(SELECT.images).clone(), rtol=1e-5, atol=1e-5)
    row = run.progress.history[-1]
    assert row["validation_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, SELECT.labels).item())
    assert row["validation_accuracy"] == pytest.approx((logits.argmax(1) == SELECT.labels).float().mean().item())


def test_only_filters_decay(tmp_path: Path) -> None:
    run = start(tmp_path)
    filters, others = run.optimizer.param_groups
    assert filters["weight_decay"] == TINY.weight_decay and others["weight_decay"] == 0
    assert {parameter.ndim for parameter in filters["params"]} == {2, 4}
    assert {parameter.ndim for parameter in others["params"]} == {1}
    assert len(filters["params"]) + len(others["params"]) == len(list(run.model.network.parameters()))


def test_augmentation_can_be_turned_off(tmp_path: Path) -> None:
    run = start(tmp_path, replace(TINY, flip=False, shift=0, cutout=0))
    batch, mirrored = torch.arange(8), torch.ones(30, dtype=torch.bool)
    assert torch.equal(run._augmented(batch, mirrored, BatchRandom(torch.Generator(), 8)), TRAIN.images[:8])


def test_another_configuration_is_refused_by_the_field_that_differs(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(TrainingError, match=r"holds another run: lr is 0.002 here and 0.001 there\. Use its values"):
        start(tmp_path, replace(TINY, lr=0.002))
    with pytest.raises(TrainingError, match="holds another run: train_data differ"):
        start(tmp_path, train=make_images(30, seed=9))
    weights = {name: value.contiguous() for name, value in start(tmp_path).model.network.state_dict().items()}
    save_file(weights, tmp_path / "init.safetensors")
    with pytest.raises(TrainingError, match="holds another run: initial_weights differ"):
        start(tmp_path, init=str(tmp_path / "init.safetensors"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_state(tmp_path: Path, save_every_step: None) -> None:
    run = start(tmp_path)
    with pytest.raises(Killed):
        run.fit(killer(4))
    sound = (tmp_path / STATE).read_bytes()
    again = start(tmp_path)
    with torch.no_grad():
        again.model.network.get_parameter("classifier.1.bias").fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"the loss became nan in epoch 2, step 1, .*try a lower --lr"):
        again.fit()
    assert (tmp_path / STATE).read_bytes() == sound
    assert not (tmp_path / WEIGHTS).exists()


def test_averages_that_would_never_be_taken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=f"--ema-every is {STEPS + 1}: it must be at most {STEPS}"):
        start(tmp_path, replace(TINY, ema_every=STEPS + 1))
    start(tmp_path, replace(TINY, ema_every=STEPS))


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--batch-size is 31: it must be at most 30"):
        start(tmp_path, replace(TINY, batch_size=31))


@pytest.mark.parametrize("content", [b"not json", b"[]", b"{}"])
def test_a_damaged_description_of_the_run_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RUN).write_bytes(content)
    with pytest.raises(TrainingError, match=r"run.json is damaged .*delete the folder"):
        start(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"junk" * 99]
)
def test_a_damaged_state_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], save_every_step: None) -> None:
    with pytest.raises(Killed):
        start(tmp_path).fit(killer(2))
    state = tmp_path / STATE
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(TrainingError, match=r"state.safetensors is damaged .*delete the folder"):
        start(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be used .*name a folder that can be written"):
        start(tmp_path / "file" / "run")


def test_runs_started_by_an_earlier_version_are_resumed(tmp_path: Path, save_every_step: None) -> None:
    with pytest.raises(Killed):
        start(tmp_path).fit(killer(2))
    record = json.loads((tmp_path / RUN).read_text())
    del record["environment"]
    (tmp_path / RUN).write_text(json.dumps(record))
    assert start(tmp_path).progress.step == 1


def test_every_step_has_random_numbers_of_its_own() -> None:
    seeds = {_generator(*key).initial_seed() for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1)]}
    assert len(seeds) == 5


def test_optimizer_state_keeps_its_memory_layout(tmp_path: Path, save_every_step: None) -> None:
    """channels_last filters need channels_last moments: the fused step walks both in storage order."""
    with pytest.raises(Killed):
        start(tmp_path).fit(killer(3))
    run = start(tmp_path)
    moments: list[tuple[Tensor, Tensor]] = [
        (parameter, run.optimizer.state[parameter]["exp_avg"]) for parameter in run.model.network.parameters()
    ]
    assert all(parameter.stride() == moment.stride() for parameter, moment in moments)
    assert os.path.getsize(tmp_path / STATE) < 60e6
