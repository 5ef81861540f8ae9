import asyncio
from collections.abc import Iterator

import grpc
import pytest

from app.api.open_inference.rpc import arrivals
from app.api.open_inference.rpc.arrivals import MOST_SLOW, Arrivals
from app.errors import Overloaded


class Call:
    """A call whose message comes when it is let."""

    def __init__(self) -> None:
        self.message: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def read(self) -> object:
        return await self.message


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(arrivals, "QUICK_SECONDS", 0)
    yield


async def slow(receiver: Arrivals, network: str, count: int) -> tuple[list[Call], list[asyncio.Task[bytes | None]]]:
    calls = [Call() for _ in range(count)]
    tasks = [asyncio.ensure_future(receiver.receive(call, network)) for call in calls]
    for _ in range(10):
        await asyncio.sleep(0)
    return calls, tasks


async def test_a_message_and_its_absence_are_received() -> None:
    for sent, received in ((b"x", b"x"), (grpc.aio.EOF, None)):
        call = Call()
        call.message.set_result(sent)
        assert await Arrivals().receive(call, "a") == received


async def test_slow_messages_have_a_bound_and_free_their_places() -> None:
    receiver = Arrivals()
    calls, tasks = await slow(receiver, "a", MOST_SLOW)
    with pytest.raises(Overloaded):
        await receiver.receive(Call(), "a")
    calls[0].message.set_result(b"x")
    assert await tasks[0] == b"x"
    tasks[1].cancel()
    await asyncio.wait({tasks[1]})
    _, more = await slow(receiver, "a", 2)
    assert not any(task.done() for task in (*tasks[2:], *more))
    for task in (*tasks, *more):
        task.cancel()


async def test_the_network_that_holds_most_makes_room_for_another() -> None:
    receiver = Arrivals()
    _, tasks = await slow(receiver, "a", MOST_SLOW)
    _, (other,) = await slow(receiver, "b", 1)
    assert not other.done()
    (displaced,) = [task for task in tasks if task.done()]
    with pytest.raises(Overloaded):
        displaced.result()
    for task in (*tasks, other):
        task.cancel()
