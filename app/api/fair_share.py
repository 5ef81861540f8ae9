"""Shares the memory for bodies and the places of images fairly between clients' networks.

    async with hold_places(request, images):     # in a route, when the body is complete
        ...
    await claim.take_bytes(len(chunk))           # as a body arrives

While there is room, every request gets what it asks for. One address alone may hold everything, so users behind one
NAT lose nothing. When there is no room, a request may displace requests of the network that holds the most: the largest
first, and the newest of equal ones. It may do so if that network holds more than the network of the request would hold
afterwards. Otherwise it is refused. So no network is displaced by one that holds more, and two networks do not displace
each other in turn.

A displaced request ends at once with 429. The displacing request waits until the memory or the places are free.
Meanwhile networks that hold more get nothing new.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal

from starlette.requests import Request

from ..errors import Overloaded
from ..inference.places import Places
from .request_context import context_of

Kind = Literal["bytes", "places"]
DISPLACE_SECONDS = 1.0  # to wait for a displaced request to end, which takes a few turns of the event loop
FULL = {"bytes": "the memory for request bodies is full", "places": "the queue of images is full"}


class Claim:
    """The bytes and places of one request. `task` answers it; `network` is its client's network (see network_of)."""

    def __init__(self, share: "FairShare", network: str, task: "asyncio.Task[object]") -> None:
        self.share = share
        self.network = network
        self.task = task
        self.held: dict[Kind, int] = {"bytes": 0, "places": 0}
        self.answered = False
        self.displaced = False
        self.changed = asyncio.Event()  # set when it holds less

    async def take_bytes(self, amount: int) -> None:
        """Raises Overloaded."""
        await self.share.take_bytes(self, amount)

    def give_back_bytes(self, amount: int) -> None:
        self.share.give_back_bytes(self, amount)

    def displace(self) -> None:
        if not self.displaced:
            self.displaced = True
            self.task.cancel()


class FairShare:
    """Counts the bytes and places of all requests under way. `body_bytes`: memory for bodies. For one event loop."""

    def __init__(self, body_bytes: int) -> None:
        self.body_bytes = body_bytes
        self.used_bytes = 0
        self._claims: dict[Claim, None] = {}  # claims that hold something, the oldest first
        self._waiting: list[tuple[Claim, Kind]] = []  # claims that displaced others

    def check_bytes(self, network: str, amount: int) -> None:
        """Raises Overloaded if a request could not have so many bytes now."""
        if not self._may_have(network, "bytes", amount, self._fits_bytes(amount)):
            raise Overloaded(FULL["bytes"])

    def check_places(self, network: str, places: Places, images: int) -> None:
        """Raises Overloaded if a request could not have so many places now."""
        if not self._may_have(network, "places", images, places.fits(images)):
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
        """Free all bytes of the claim."""
        if held := claim.held["bytes"]:
            self.give_back_bytes(claim, held)

    @asynccontextmanager
    async def places(self, claim: Claim, places: Places, images: int) -> AsyncIterator[None]:
        """Raises Overloaded."""
        if self._waiting or not places.fits(images):
            await self._make_room(claim, "places", images, lambda: places.fits(images))
        with places.reserve(images):
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
        """Whether a network waits that holds less."""
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
            victim.displace()
            waits = (claim, kind)
            self._waiting.append(waits)
            try:
                victim.changed.clear()
                async with asyncio.timeout(DISPLACE_SECONDS):
                    await victim.changed.wait()
            except TimeoutError:
                raise Overloaded(FULL[kind]) from None
            finally:
                self._waiting.remove(waits)


def check_places(request: Request, images: int) -> None:
    """Raises Overloaded if the places are not available now. A route calls it to avoid reading a body in vain."""
    claim = context_of(request.scope).claim
    assert claim is not None
    claim.share.check_places(claim.network, request.app.state.service.places, images)


def hold_places(request: Request, images: int) -> AbstractAsyncContextManager[None]:
    """Places of images, until the block ends. Raises Overloaded."""
    claim = context_of(request.scope).claim
    assert claim is not None
    return claim.share.places(claim, request.app.state.service.places, images)
