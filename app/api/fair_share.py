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

Several workers share all of it: what a network holds is what it holds in all of them, and a worker without a request of
that network has another one displace it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

from starlette.requests import Request

from ..errors import Overloaded
from ..inference.places import Places
from ..workers.holdings import Holdings, Kind
from .request_context import context_of

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
    """Counts the bytes and places of all requests under way. `body_bytes`: memory for bodies. For one event loop.

    `others`: what the other workers hold; None if there are none.
    """

    def __init__(self, body_bytes: int, others: Holdings | None = None) -> None:
        self.body_bytes = body_bytes
        self._others = others
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
        if self._any_waits or not self._fits_bytes(amount):
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
        if self._any_waits or not places.fits(images):
            await self._make_room(claim, "places", images, lambda: places.fits(images))
        with places.reserve(images):
            self._hold(claim, "places", images)
            try:
                yield
            finally:
                self._hold(claim, "places", -images)

    def displace(self, network: str, kind: Kind) -> None:
        """Displace a request of this network, on behalf of another worker; nothing if it holds nothing here."""
        if victim := self._victim(network, kind):
            victim.displace()

    @property
    def _any_waits(self) -> bool:
        return bool(self._waiting or (self._others and self._others.waiting()))

    def _fits_bytes(self, amount: int) -> bool:
        used = self.used_bytes + (self._others.total("bytes") if self._others else 0)
        return used + amount <= self.body_bytes

    def _hold(self, claim: Claim, kind: Kind, amount: int) -> None:
        claim.held[kind] += amount
        if self._others:
            self._others.hold(claim.network, kind, amount)
        if amount < 0:
            claim.changed.set()
        if any(claim.held.values()):
            self._claims.setdefault(claim)
        else:
            self._claims.pop(claim, None)

    def _by_network(self, kind: Kind) -> dict[str, int]:
        held = self._others.by_network(kind) if self._others else {}
        for claim in self._claims:
            held[claim.network] = held.get(claim.network, 0) + claim.held[kind]
        return held

    def _may_have(self, network: str, kind: Kind, amount: int, fits: bool) -> bool:
        if fits and not self._any_waits:
            return True
        held = self._by_network(kind)
        return not self._must_yield(held, network, kind, amount) and (
            fits or self._most(held, network, amount) is not None
        )

    def _must_yield(self, held: dict[str, int], network: str, kind: Kind, amount: int) -> bool:
        """Whether a network waits that holds less."""
        mine = held.get(network, 0) + amount
        waiting = [(claim.network, other) for claim, other in self._waiting]
        waiting += self._others.waiting() if self._others else []
        return any(other == kind and who != network and mine > held.get(who, 0) for who, other in waiting)

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
            victim = self._victim(network, kind)
            with self._waits(claim, kind):
                try:
                    async with asyncio.timeout(DISPLACE_SECONDS):
                        if victim:
                            victim.displace()
                            victim.changed.clear()
                            await victim.changed.wait()
                        elif self._others:
                            await self._others.displace(network, kind)
                except TimeoutError:
                    raise Overloaded(FULL[kind]) from None

    def _victim(self, network: str, kind: Kind) -> Claim | None:
        """The newest of this network's largest requests; None if it holds nothing here."""
        holding = [claim for claim in self._claims if claim.network == network and claim.held[kind]]
        return max(reversed(holding), key=lambda claim: claim.held[kind], default=None)

    @contextmanager
    def _waits(self, claim: Claim, kind: Kind) -> Iterator[None]:
        waits = (claim, kind)
        self._waiting.append(waits)
        self._tell_who_waits()
        try:
            yield
        finally:
            self._waiting.remove(waits)
            self._tell_who_waits()

    def _tell_who_waits(self) -> None:
        if self._others:
            self._others.wait([(claim.network, kind) for claim, kind in self._waiting])


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
