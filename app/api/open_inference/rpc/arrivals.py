"""Bounds the memory of messages that are still arriving: gRPC tells nothing of a message until it is whole.

    message = await arrivals.receive(context, network)      # None if the client sends none; Overloaded

Most messages are whole at once. One that is not after QUICK_SECONDS takes one of MOST_SLOW places, each for up to
MAX_REQUEST_BYTES. When none is free, the network that holds most gives one up to a network that holds less, as with
other shares.
"""

import asyncio
from typing import Any

import grpc

from ....errors import Overloaded
from ...fair_share import Claim, FairShare

QUICK_SECONDS = 0.25
MOST_SLOW = 8
BUSY = "too many messages arrive slowly: send it again later"


class Arrivals:
    """For one event loop."""

    def __init__(self) -> None:
        self._share = FairShare(MOST_SLOW)

    async def receive(self, context: Any, network: str) -> bytes | None:
        """The next message of a call. Raises Overloaded."""
        reading: asyncio.Task[Any] = asyncio.ensure_future(context.read())
        claim = Claim(self._share, network, reading)
        try:
            done, _ = await asyncio.wait({reading}, timeout=QUICK_SECONDS)
            if not done:
                try:
                    await claim.take_bytes(1)
                except Overloaded:
                    raise Overloaded(BUSY) from None
            message = await reading
        except asyncio.CancelledError:
            if claim.displaced:
                raise Overloaded(BUSY) from None
            raise
        finally:
            self._share.release(claim)
            reading.cancel()
        return None if message is grpc.aio.EOF else message
