"""What a run is, told before it trains: a line each, as soon as it is known."""

from rich.console import Console

from training.fit.run import Run


def tell(console: Console, what: str, line: str) -> None:
    console.print(f"{what:8}{line}", soft_wrap=True, highlight=False, markup=False)


def begins(run: Run) -> str:
    """At which step a run begins."""
    done, total, epochs = run.steps_done, run.total_steps, run.config.epochs
    if run.progress.epoch == epochs:
        return f"finished before, with {total:,} steps"
    if done:
        return f"resumed at step {done:,} of {total:,}, in epoch {run.progress.epoch + 1} of {epochs}"
    return f"new, {total:,} steps in {epochs} epochs"
