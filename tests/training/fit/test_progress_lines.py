import io
from dataclasses import replace

from rich.console import Console

from tests.training.fit.test_progress_bar import NOW
from training.fit.progress_lines import ProgressLines


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_there_is_a_line_a_minute_and_one_an_epoch() -> None:
    out, clock = io.StringIO(), Clock()
    with ProgressLines(Console(file=out, width=40), clock=clock) as watch:
        for step in range(100, 251):
            watch(NOW, step, 2000, 87.6)
            clock.now += 1
        watch(replace(NOW, history=[*NOW.history, {"epoch": 2, "validation_accuracy": 0.95}]), 251, 2000, 87.6)
    assert out.getvalue().splitlines() == [
        "epoch 1: validation accuracy 91.23%",
        "step 160 of 2,000, epoch 2: 88 images/s, loss 0.500, accuracy 75.0%, 0:30:40 left",
        "step 220 of 2,000, epoch 2: 88 images/s, loss 0.500, accuracy 75.0%, 0:29:40 left",
        "epoch 2: validation accuracy 95.00%",
    ]


def test_another_run_begins_its_own_estimate() -> None:
    out, clock = io.StringIO(), Clock()
    watch = ProgressLines(Console(file=out), clock=clock)
    watch(NOW, 1, 1, 87.6)
    clock.now = 100
    watch(replace(NOW, history=[]), 1, 5, 87.6)
    clock.now = 160
    watch(replace(NOW, history=[]), 3, 5, 87.6)
    assert out.getvalue().splitlines()[1].endswith("0:01:00 left")


def test_the_views_that_teachers_have_answered_are_lines() -> None:
    out = io.StringIO()
    ProgressLines(Console(file=out), views=14).answered(7)
    assert out.getvalue() == "teachers: 7 of 14 views\n"
