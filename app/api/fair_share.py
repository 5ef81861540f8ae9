"""What a client's network may hold of the memory for bodies, and of the engine's queue, when somebody else wants some.

    async with hold_places(request, images):     # in a route, once the body is there
        ...
    await claim.take_bytes(len(chunk))           # as a body arrives

As long as there is room, everybody gets what they ask for: one address alone, and so all users behind one NAT, may
hold everything. When there is none left, a request may push out requests of the network that holds the most, the
largest first and of those the newest, while that network holds more than its own would then. Else it is refused. So
nobody is pushed out by somebody who holds more, and two networks do not push each other out in turn.

A request that is pushed out ends wherever it is, with 429. The one that pushed waits until its memory and its places
are free; meanwhile a network that holds more gets nothing new.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal

from starlette.requests import Request

from ..errors import Overloaded
from ..inference.engine import Engine
from .request_context import context_of

Kind = Literal["bytes", "places"]
PUSH_SECONDS = 1.0  # to wait for the end of a request that is pushed out: a few turns of the event loop
FULL = {"bytes": "the memory for request bodies is full", "places": "the queue of images is full"}


class Claim:
    """What one request holds. `task` answers it; `network` is its client's (see network_of)."""

    def __init__(self, share: "FairShare", network: str, task: "asyncio.Task[object]") -> None:
        self.share = share
        self.network = network
        self.task = task
        self.held: dict[Kind, int] = {"bytes": 0, "places": 0}
        self.answered = False
        self.pushed_out = False
        self.changed = asyncio.Event()  # once it holds less

    async def take_bytes(self, amount: int) -> None:
        """Raises Overloaded."""
        await self.share.take_bytes(self, amount)

    def give_back_bytes(self, amount: int) -> None:
        self.share.give_back_bytes(self, amount)

    def push_out(self) -> None:
        if not self.pushed_out:
            self.pushed_out = True
            self.task.cancel()


class FairShare:
    """Accounts for all requests under way. `body_bytes` is the memory for bodies. For one event loop."""

    def __init__(self, body_bytes: int) -> None:
        self.body_bytes = body_bytes
        self.used_bytes = 0
        self._claims: dict[Claim, None] = {}  # that hold something, the oldest first
        self._waiting: list[tuple[Claim, Kind]] = []  # that pushed others out

    def check_bytes(self, network: str, amount: int) -> None:
        """Raises Overloaded if a request could not have so many bytes now."""
        if not self._may_have(network, "bytes", amount, self._fits_bytes(amount)):
            raise Overloaded(FULL["bytes"])

    def check_places(self, network: str, engine: Engine, images: int) -> None:
        """Raises Overloaded if a request could not have so many places now."""
        if not self._may_have(network, "places", images, engine.fits(images)):
            raise Overloaded(FULL["places"])

    async def take_bytes(self, claim: Claim, amount: int) -> None:
        """Raises Overloaded."""
        if self._waiting or not self._fits_bytes(amount):
            await self._make_room(claim, "bytes", amount, lambda: self._fits_bytes(amount))
        self.used_bytes += amount
        self._hold(claim, "bytes", amount)

    def give_back_bytes(self, claim: Claim, amount: int) -> None:
        self.used_bytes -= amount
        self._hold(claim, "bytes", -amount)

    def release(self, claim: Claim) -> None:
        """The end of a request's body."""
        if held := claim.held["bytes"]:
            self.give_back_bytes(claim, held)

    @asynccontextmanager
    async def places(self, claim: Claim, engine: Engine, images: int) -> AsyncIterator[None]:
        """Raises Overloaded."""
        if self._waiting or not engine.fits(images):
            await self._make_room(claim, "places", images, lambda: engine.fits(images))
        with engine.reserve(images):
            self._hold(claim, "places", images)
            try:
                yield
            finally:
                self._hold(claim, "places", -images)

    def _fits_bytes(self, amount: int) -> bool:
        return self.used_bytes + amount <= self.body_bytes

    def _hold(self, claim: Claim, kind: Kind, amount: int) -> None:
        claim.held[kind] += amount
        if amount < 0:
            claim.changed.set()
        if any(claim.held.values()):
            self._claims.setdefault(claim)
        else:
            self._claims.pop(claim, None)

    def _by_network(self, kind: Kind) -> dict[str, int]:
        held: dict[str, int] = {}
        for claim in self._claims:
            held[claim.network] = held.get(claim.network, 0) + claim.held[kind]
        return held

    def _may_have(self, network: str, kind: Kind, amount: int, fits: bool) -> bool:
        if fits and not self._waiting:
            return True
        held = self._by_network(kind)
        return not self._must_yield(held, network, kind, amount) and (
            fits or self._most(held, network, amount) is not None
        )

    def _must_yield(self, held: dict[str, int], network: str, kind: Kind, amount: int) -> bool:
        """Whether somebody waits who holds less."""
        mine = held.get(network, 0) + amount
        return any(
            other == kind and claim.network != network and mine > held.get(claim.network, 0)
            for claim, other in self._waiting
        )

    def _most(self, held: dict[str, int], network: str, amount: int) -> str | None:
        """The network that holds the most, if that is more than `network` would hold."""
        most = max((other for other in held if other != network), key=held.__getitem__, default=None)
        return most if most is not None and held[most] > held.get(network, 0) + amount else None

    async def _make_room(self, claim: Claim, kind: Kind, amount: int, fits: Callable[[], bool]) -> None:
        """Returns when there is room. Raises Overloaded."""
        while True:
            held = self._by_network(kind)
            if self._must_yield(held, claim.network, kind, amount):
                raise Overloaded(FULL[kind])
            if fits():
                return
            network = self._most(held, claim.network, amount)
            if network is None:
                raise Overloaded(FULL[kind])
            of_network = [other for other in self._claims if other.network == network]
            victim = max(reversed(of_network), key=lambda other: other.held[kind])
            victim.push_out()
            waits = (claim, kind)
            self._waiting.append(waits)
            try:
                victim.changed.clear()
                async with asyncio.timeout(PUSH_SECONDS):
                    await victim.changed.wait()
            except TimeoutError:
                raise Overloaded(FULL[kind]) from None
            finally:
                self._waiting.remove(waits)


def check_places(request: Request, images: int) -> None:
    """Raises Overloaded if there could be no such places now. It spares the reading of a body that is refused then."""
    claim = context_of(request.scope).claim
    assert claim is not None
    claim.share.check_places(claim.network, request.app.state.service.engine, images)


def hold_places(request: Request, images: int) -> AbstractAsyncContextManager[None]:
    """Places in the engine's queue, until the block ends. Raises Overloaded."""
    claim = context_of(request.scope).claim
    assert claim is not None
    return claim.share.places(claim, request.app.state.service.engine, images)
