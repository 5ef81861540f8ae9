import io
import re

import pytest
from rich.console import Console

from training.fit.progress_bar import ProgressBar
from training.fit.run import Progress

NOW = Progress(
    epoch=1, step=3, loss_sum=12.0, correct=18, seen=24, history=[{"epoch": 1, "validation_accuracy": 0.9123}]
)


def test_a_terminal_of_eighty_columns_sees_where_the_run_is() -> None:
    out = io.StringIO()
    with ProgressBar(Console(file=out, force_terminal=True, width=80, no_color=True)) as watch:
        for step in (60, 80, 100):
            watch(NOW, step, 200, 87.6)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n").splitlines()
    assert "epoch 1: validation accuracy 91.23%" in [line.strip() for line in lines]
    assert re.fullmatch(
        r"epoch 2 .+ 50 %, 88 images/s, loss 0.500, accuracy 75.0%, left [-0-9]+:[-0-9]+:[-0-9]+", lines[-1].strip()
    )


def test_a_terminal_sees_how_far_the_teachers_are() -> None:
    out = io.StringIO()
    with ProgressBar(Console(file=out, force_terminal=True, width=80, no_color=True), views=14) as bar:
        bar.answered(0)
        bar.answered(7)
        bar._bar.refresh()
        seen = out.getvalue()
        bar.answered(14)
    assert re.search(r"teachers .+ 50 %, 7 of 14 views, left", seen)
    assert "14 of 14" not in out.getvalue()


def test_the_bar_ends_with_the_run() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(KeyboardInterrupt), ProgressBar(console) as watch:
        watch(NOW, 1, 2, 1.0)
        raise KeyboardInterrupt
    assert not console._live_stack
