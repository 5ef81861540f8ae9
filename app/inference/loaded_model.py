"""A bundle that answers under a name.

with repository.models["small"] as model:       # its threads go on until the block ends, whatever is loaded meanwhile
    await model.classifier.classify(content, deadline)
"""

import asyncio
from dataclasses import dataclass, field
from typing import Self

from ..bundle.reader import Bundle
from .classifier import Classifier
from .drift import Drift


@dataclass(eq=False)
class LoadedModel:
    """For one event loop. `drift`: None if the bundle has no reference. Use it in a `with` block to classify."""

    name: str
    bundle: Bundle
    classifier: Classifier
    drift: Drift | None
    _users: int = field(init=False, default=0)
    _unused: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def __enter__(self) -> Self:
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def end(self) -> None:
        """Stop its threads, when nobody uses it any more. Nobody may begin to."""
        while self._users:
            self._unused.clear()
            await self._unused.wait()
        await asyncio.to_thread(self.classifier.engine.close)
