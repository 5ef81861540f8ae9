import asyncio

import pytest

from app.api.disconnect import unless_gone
from app.errors import ClientGone, Overloaded


class Client:
    """Stands for a request whose client leaves when told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, str]:
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_work_ends_when_its_client_leaves() -> None:
    client, cancelled = Client(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    asyncio.get_running_loop().call_soon(client.left.set)
    with pytest.raises(ClientGone):
        await unless_gone(client, work())
    await asyncio.wait_for(cancelled.wait(), 30)


async def test_work_whose_client_stays_is_answered() -> None:
    async def work() -> int:
        return 7

    assert await unless_gone(Client(), work()) == 7


async def test_errors_of_the_work_come_through() -> None:
    async def work() -> None:
        raise Overloaded("busy")

    with pytest.raises(Overloaded):
        await unless_gone(Client(), work())
