"""Numbers of things in sentences."""


def plural(count: int, noun: str) -> str:
    """The count with its noun: "1 epoch", "1,200 steps"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
