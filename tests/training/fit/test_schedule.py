import math

import pytest
import torch

from training.fit.schedule import learning_rate


def rates(steps: int, warmup: float, peak: float = 1.0) -> list[float]:
    return [learning_rate(step, steps=steps, peak=peak, warmup=warmup) for step in range(steps)]


def test_the_rate_rises_to_the_peak_and_falls_towards_zero() -> None:
    every = rates(200, 0.1, peak=0.3)
    top = every.index(max(every))
    assert top == 20 and every[top] == pytest.approx(0.3)
    assert every[:21] == sorted(every[:21])
    assert every[20:] == sorted(every[20:], reverse=True)
    assert every[0] == pytest.approx(0.3 / 21)
    assert 0 < every[-1] < 0.3 * 1e-4


@pytest.mark.parametrize("warmup", [0.0, 0.08, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 13])
def test_every_step_of_a_short_run_moves(steps: int, warmup: float) -> None:
    assert all(0 < rate <= 1 for rate in rates(steps, warmup))


def test_the_fall_is_torch_s_cosine() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.7)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for rate in rates(50, 0.0, peak=0.7):
        assert math.isclose(rate, reference.get_last_lr()[0], rel_tol=1e-9)
        optimizer.step()
        reference.step()
