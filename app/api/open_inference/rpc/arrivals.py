"""Bounds the memory of messages that are still arriving: gRPC tells nothing of a message until it is whole.

    message = await arrivals.receive(context, network)      # None if the client sends none; Overloaded

What nobody reads is held back by HTTP/2, so only what is read can grow, to MAX_REQUEST_BYTES each. Reading begins in
one of QUICK places, for which the clients' networks take turns; most messages are whole at once. One that is not after
QUICK_SECONDS needs one of the slow places, as many as messages fit into MAX_INFLIGHT_BODY_BYTES. When none of these is
free, the network that holds most gives one up to a network that holds less, as with other shares.
"""

import asyncio
from collections import deque
from typing import Any, Self

import grpc

from ....errors import Overloaded
from ....settings import Settings
from ...fair_share import Claim, FairShare

QUICK = 2
MOST_SLOW = 64
QUICK_SECONDS = 0.25
BUSY = "too many messages arrive slowly: send it again later"


class Arrivals:
    """For one event loop. `slow`: places for messages that are not whole after QUICK_SECONDS."""

    def __init__(self, slow: int) -> None:
        self._quick = _Turns(QUICK)
        self._slow = FairShare(slow)

    @classmethod
    def within(cls, settings: Settings) -> Self:
        """As many as the memory for bodies has room for, at least one."""
        return cls(max(1, min(MOST_SLOW, settings.max_inflight_body_bytes // settings.max_request_bytes)))

    async def receive(self, context: Any, network: str) -> bytes | None:
        """The next message of a call. Raises Overloaded."""
        await self._quick.take(network)
        quick = True
        reading: asyncio.Task[Any] = asyncio.ensure_future(context.read())
        claim = Claim(self._slow, network, reading)
        try:
            done, _ = await asyncio.wait({reading}, timeout=QUICK_SECONDS)
            if not done:
                await _claim(claim)
                quick = False
                self._quick.give_back()
            message = await reading
        except asyncio.CancelledError:
            if claim.displaced:
                raise Overloaded(BUSY) from None
            raise
        finally:
            reading.cancel()
            self._slow.release(claim)
            if quick:
                self._quick.give_back()
        return None if message is grpc.aio.EOF else message


async def _claim(claim: Claim) -> None:
    try:
        await claim.take_bytes(1)
    except Overloaded:
        raise Overloaded(BUSY) from None


class _Turns:
    """Places for which one waits. Networks take turns."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def take(self, network: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(network, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self.give_back()
            raise

    def give_back(self) -> None:
        while self._waiting:
            network = next(iter(self._waiting))
            turns = self._waiting.pop(network)
            turn = turns.popleft()
            if turns:
                self._waiting[network] = turns  # the network goes to the end
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
