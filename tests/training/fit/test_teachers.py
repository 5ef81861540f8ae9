from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import log_softmax, rel_entr

from app.network.mobilenet import Preprocessed
from app.network.served import ServedNetwork
from tests.training.tiny import TINY, make_images, shallow
from training.config import Config
from training.errors import TrainingError
from training.export.graph import build_graph, run_graph
from training.fit import initial_weights
from training.fit.distributed import World
from training.fit.run import Run
from training.fit.teachers import distillation_loss, read_teacher, teacher_logits

TRAIN, SELECT = make_images(30, seed=1), make_images(20, seed=2)
TAUGHT = replace(TINY, epochs=4, views=2)


@pytest.fixture(autouse=True, scope="module")
def shallow_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(initial_weights, "mobilenet_v2", shallow)
        yield


@pytest.fixture(scope="module")
def teacher() -> bytes:
    torch.manual_seed(7)
    network = shallow(TINY.architecture)
    with torch.no_grad():
        network.get_parameter("classifier.1.weight").mul_(50)
    return build_graph(
        ServedNetwork(Preprocessed(network, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).eval())
    ).SerializeToString()


def start(folder: Path, *teachers: bytes, config: Config = TAUGHT) -> Run:
    return Run(folder, config, "random", TRAIN, SELECT, teachers)


def test_the_loss_is_cross_entropy_and_softened_divergence() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.normal(0, 3, (2, 5, 10)).astype(np.float32)
    softened = [np.exp(log_softmax(one / 2, axis=1)) for one in (theirs, ours)]
    divergence = rel_entr(*softened).sum() / 5
    found = distillation_loss(torch.tensor(1.5), torch.tensor(ours), torch.tensor(theirs), 0.7, 2.0).item()
    assert found == pytest.approx(0.3 * 1.5 + 0.7 * 4 * divergence, rel=1e-5)
    same = distillation_loss(torch.tensor(1.5), torch.tensor(ours), torch.tensor(ours), 1.0, 2.0)
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_the_teacher_logits_what_the_student_sees(tmp_path: Path, teacher: bytes) -> None:
    run = start(tmp_path, teacher)
    seen = [[(batch, images.clone()) for batch, images in run._batches(view, World())] for view in range(2)]
    answers = run._teacher_logits()
    assert answers is not None and answers.shape == (2, 24, 10) and answers.dtype == torch.float16
    for view, batches in enumerate(seen):
        expected = run_graph(teacher, torch.cat([images for _, images in batches]).numpy())
        assert answers[view].float().numpy() == pytest.approx(expected, rel=1e-2, abs=1e-2)
    assert not torch.equal(seen[0][0][1], seen[1][0][1])


def test_every_step_gets_the_answers_to_its_own_images(
    tmp_path: Path, teacher: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pixels(_: bytes, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return images.reshape(len(images), -1)[:, 1500:1510].astype(np.float32)  # float16 holds them exactly

    monkeypatch.setattr("training.fit.teachers.run_graph", pixels)
    run = start(tmp_path, teacher, config=replace(TAUGHT, epochs=5))
    step, seen = run._step, []

    def checked(images: torch.Tensor, labels: torch.Tensor, taught: torch.Tensor, *rest: int) -> tuple[float, int]:
        seen.append(images)
        assert np.array_equal(taught.numpy(), pixels(b"", images.numpy()))
        return step(images, labels, taught, *rest)

    monkeypatch.setattr(run, "_step", checked)
    run.fit()
    assert len(seen) == 15 and not torch.equal(seen[0], seen[3])
    assert torch.equal(seen[0], seen[6])  # two views, by turns


def test_views_come_back_in_turn(tmp_path: Path, teacher: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tmp_path)
    asked = []
    batches = run._batches
    monkeypatch.setattr(run, "_batches", lambda view, *rest: asked.append(view) or batches(view, *rest))
    run.fit()
    assert asked == [0, 1, 0, 1]


def test_answers_are_asked_for_once(tmp_path: Path, teacher: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    views = [[TRAIN.images[:8], TRAIN.images[8:16]], [TRAIN.images[16:32]]]
    views[1] = [TRAIN.images[:16]]
    first = teacher_logits(tmp_path, [teacher], views)
    monkeypatch.setattr("training.fit.teachers.run_graph", lambda *_: pytest.fail("asked again"))
    assert torch.equal(teacher_logits(tmp_path, [teacher], views), first)


def test_a_view_that_was_answered_before_a_kill_is_not_asked_for_again(
    tmp_path: Path, teacher: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = [[TRAIN.images[:16]], [TRAIN.images[8:24]], [TRAIN.images[14:30]]]
    expected = [run_graph(teacher, images.numpy()) for (images,) in views]
    asked = []

    def kill(count: int) -> None:
        if count == 2:
            raise KeyboardInterrupt

    def ask(graph: bytes, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        asked.append(images)
        return run_graph(graph, images)

    monkeypatch.setattr("training.fit.teachers.run_graph", ask)
    with pytest.raises(KeyboardInterrupt):
        teacher_logits(tmp_path, [teacher], views, kill)
    told: list[int] = []
    answers = teacher_logits(tmp_path, [teacher], views, told.append)
    assert answers.float().numpy() == pytest.approx(np.stack(expected), rel=1e-2, abs=1e-2)
    assert len(asked) == 3 and told == [2, 3]
    teacher_logits(tmp_path, [teacher, teacher], views)
    assert len(asked) == 9


def test_views_that_no_epoch_comes_to_are_not_answered(tmp_path: Path, teacher: bytes) -> None:
    answers = start(tmp_path, teacher, config=replace(TAUGHT, views=9, epochs=3))._teacher_logits()
    assert answers is not None and len(answers) == 3


def test_a_student_comes_nearer_to_its_teacher(tmp_path: Path, teacher: bytes) -> None:
    config = replace(TAUGHT, epochs=12, lr=1e-2, teacher_weight=1.0)
    taught, alone = start(tmp_path / "taught", teacher, config=config), start(tmp_path / "alone", config=config)

    def distance(run: Run) -> float:
        run.fit()
        with torch.inference_mode():
            ours = run.model.eval()(TRAIN.images)
        theirs = torch.from_numpy(run_graph(teacher, TRAIN.images.numpy()))
        return distillation_loss(torch.tensor(0.0), ours, theirs, 1.0, 2.0).item()

    assert distance(taught) < 0.7 * distance(alone)


def test_a_taught_run_goes_on_with_the_same_bits(tmp_path: Path, teacher: bytes) -> None:
    whole = start(tmp_path / "whole", teacher).fit().read_bytes()

    class Killed(BaseException):
        pass

    def kill(_: object, step: int, *__: object) -> None:
        if step == 7:
            raise Killed

    cut = start(tmp_path / "cut", teacher)
    with pytest.raises(Killed):
        cut.fit(kill)
    assert start(tmp_path / "cut", teacher).fit().read_bytes() == whole


def test_another_teacher_is_another_run(tmp_path: Path, teacher: bytes) -> None:
    start(tmp_path, teacher)
    for others in ([], [teacher + b" "], [teacher, teacher]):
        with pytest.raises(TrainingError, match="holds another run: teacher differ"):
            start(tmp_path, *others)
    with pytest.raises(TrainingError, match="--views is 0: with a teacher it must be at least 1"):
        start(tmp_path / "other", teacher, config=TINY)


def test_of_several_teachers_the_mean_logits_are_taught(tmp_path: Path, teacher: bytes) -> None:
    torch.manual_seed(8)
    other = build_graph(
        ServedNetwork(Preprocessed(shallow(TINY.architecture), (0.5,) * 3, (0.2,) * 3).eval())
    ).SerializeToString()
    views = [[TRAIN.images[:10], TRAIN.images[10:16]]]
    answers = teacher_logits(tmp_path, [teacher, other], views)
    expected = (run_graph(teacher, TRAIN.images[:16].numpy()) + run_graph(other, TRAIN.images[:16].numpy())) / 2
    assert answers.float().numpy() == pytest.approx(expected[None], rel=1e-2, abs=1e-2)


def test_a_teacher_is_a_bundle_or_a_finished_run(finished_bundle: Path, run_dir: Path) -> None:
    assert read_teacher(finished_bundle, 0) == (finished_bundle / "model.onnx").read_bytes()
    images = make_images(4, seed=3).images.numpy()
    of_run, of_bundle = (run_graph(read_teacher(folder, 0), images) for folder in (run_dir, finished_bundle))
    assert np.array_equal(of_run, of_bundle)


def test_what_is_neither_is_refused(tmp_path: Path, run_dir: Path) -> None:
    with pytest.raises(TrainingError, match="--teacher: cannot read"):
        read_teacher(tmp_path, 0)
    (run_dir / "weights.safetensors").unlink()
    with pytest.raises(TrainingError, match="is not finished"):
        read_teacher(run_dir, 0)


def test_one_of_another_split_is_refused(finished_bundle: Path, run_dir: Path) -> None:
    for folder in (finished_bundle, run_dir):
        with pytest.raises(TrainingError, match=r"--teacher .* was trained with --split-seed 0, not 1: it has seen"):
            read_teacher(folder, 1)
