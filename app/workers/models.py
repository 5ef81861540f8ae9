"""What the supervisor asks of the models that it keeps for new workers: app.inference.preloaded has them."""

from collections.abc import Iterable
from typing import Protocol


class Models(Protocol):
    """The models that new workers begin with. Each of these may take long and raises a Problem."""

    @property
    def names(self) -> Iterable[str]: ...

    def prepare(self, name: str) -> str:
        """Load what the model's folder holds now. Returns the digest of the bundle."""

    def take_over(self) -> None:
        """New workers get what was prepared."""

    def drop(self) -> None:
        """Forget what was prepared."""
