import asyncio
from collections.abc import Callable, Iterator

import grpc
import pytest

from app.api.open_inference.rpc import arrivals
from app.api.open_inference.rpc.arrivals import MOST_SLOW, QUICK, Arrivals
from app.errors import Overloaded
from app.settings import Settings

SLOW = 4


class Call:
    """A call whose message comes when it is let."""

    def __init__(self) -> None:
        self.message: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.begun = False
        self.on_read: Callable[[], object] = lambda: None

    async def read(self) -> object:
        self.begun = True
        self.on_read()
        return await self.message


async def turn() -> None:
    """Let everything go on that can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(arrivals, "QUICK_SECONDS", 0)
    yield


async def slow(receiver: Arrivals, network: str, count: int) -> tuple[list[Call], list[asyncio.Task[bytes | None]]]:
    calls = [Call() for _ in range(count)]
    tasks = [asyncio.ensure_future(receiver.receive(call, network)) for call in calls]
    await turn()
    return calls, tasks


async def test_a_message_and_its_absence_are_received() -> None:
    for sent, received in ((b"x", b"x"), (grpc.aio.EOF, None)):
        call = Call()
        call.message.set_result(sent)
        assert await Arrivals(SLOW).receive(call, "a") == received


async def test_networks_take_turns_to_read() -> None:
    receiver = Arrivals(SLOW)
    first, _ = await slow(receiver, "a", QUICK)
    many, _ = await slow(receiver, "a", 3)
    one, _ = await slow(receiver, "b", 1)
    left, leaving = await slow(receiver, "c", 1)
    leaving[0].cancel()
    read = []
    for call in (*first, *many, *one):
        call.on_read = lambda call=call: read.append(call)
    for call in (first[1], first[0], many[0], one[0]):
        call.message.set_result(b"x")
        await turn()
    assert read == [many[0], one[0], many[1], many[2]]
    assert not left[0].begun
    for call in many[1:]:
        call.message.set_result(b"x")


@pytest.mark.usefixtures("impatient")
async def test_slow_messages_have_a_bound_and_free_their_places() -> None:
    receiver = Arrivals(SLOW)
    calls, tasks = await slow(receiver, "a", SLOW)
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


@pytest.mark.usefixtures("impatient")
async def test_the_network_that_holds_most_makes_room_for_another() -> None:
    receiver = Arrivals(SLOW)
    _, tasks = await slow(receiver, "a", SLOW)
    _, (other,) = await slow(receiver, "b", 1)
    assert not other.done()
    (displaced,) = [task for task in tasks if task.done()]
    with pytest.raises(Overloaded):
        displaced.result()
    for task in (*tasks, other):
        task.cancel()


@pytest.mark.parametrize(
    ("settings", "slow"),
    [
        ({}, 2),
        ({"max_request_bytes": 1 << 20}, 64),
        ({"max_inflight_body_bytes": 1}, 1),
        ({"max_request_bytes": 1}, MOST_SLOW),
    ],
)
async def test_as_many_messages_arrive_slowly_as_bodies_fit_into_the_memory(
    settings: dict[str, int], slow: int
) -> None:
    assert Arrivals.within(Settings(_env_file=None, **settings))._slow.body_bytes == slow
