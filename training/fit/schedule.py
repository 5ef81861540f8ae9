"""The learning rate as a pure function of the step."""

import math


def learning_rate(step: int, *, steps: int, peak: float, warmup: float) -> float:
    """The rate of step `step` (0-based) of `steps`: a linear rise, then half a cosine to zero.

    Loshchilov & Hutter 2017 (arXiv:1608.03983) without restarts. `warmup` is a fraction of all steps.
    The first step already moves, the last still does.
    """
    rising = round(steps * warmup)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
