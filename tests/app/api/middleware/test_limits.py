import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from app.api.middleware.limits import Budget, PixelBudget, unless_gone
from app.errors import ClientGone, DeadlineExceeded, Overloaded
from app.main import IMAGE_PATHS


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


def test_a_budget_refuses_what_does_not_fit() -> None:
    budget = Budget(10)
    budget.take(6)
    with pytest.raises(Overloaded):
        budget.take(5)
    assert budget.used == 6
    budget.take(4)
    budget.give_back(10)
    assert budget.used == 0


async def test_pixels_are_shared_in_order_of_arrival() -> None:
    budget = PixelBudget(10)
    order: list[str] = []
    leave: dict[str, asyncio.Event] = {name: asyncio.Event() for name in ("a", "b", "c", "d")}

    async def hold(name: str, pixels: int) -> None:
        async with budget.hold(pixels, soon()):
            order.append(name)
            await leave[name].wait()

    tasks = [asyncio.create_task(hold(*what)) for what in [("a", 6), ("b", 8), ("c", 2), ("d", 2)]]
    await asyncio.sleep(0)
    assert order == ["a"]  # c and d would fit, but b came first
    leave["a"].set()
    await tasks[0]
    while len(order) < 3:
        await asyncio.sleep(0)
    assert order == ["a", "b", "c"]
    for event in leave.values():
        event.set()
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c", "d"]
    assert budget.used == 0


async def test_a_thread_takes_what_is_free_and_never_before_those_who_wait() -> None:
    budget = PixelBudget(10)
    with budget.hold_at_once(6) as first, budget.hold_at_once(5) as second, budget.hold_at_once(4) as third:
        assert (first, second, third) == (True, False, True)
        waiting = asyncio.create_task(wait_for(budget, 7))
        await asyncio.sleep(0)
        with budget.hold_at_once(0) as fourth:
            assert not fourth
    await waiting
    with budget.hold_at_once(50) as alone:
        assert alone and budget.used == 10
    assert budget.used == 0


async def test_an_error_in_a_thread_gives_the_pixels_back() -> None:
    budget = PixelBudget(10)
    with pytest.raises(ValueError), budget.hold_at_once(6):
        raise ValueError
    assert budget.used == 0


async def test_a_thread_that_gives_back_lets_in_who_waits() -> None:
    budget = PixelBudget(10)
    begun, end = threading.Event(), threading.Event()

    def work() -> None:
        with budget.hold_at_once(10):
            begun.set()
            assert end.wait(30)

    thread = asyncio.create_task(asyncio.to_thread(work))
    await asyncio.to_thread(begun.wait, 30)
    waiting = asyncio.create_task(wait_for(budget, 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    end.set()
    await asyncio.gather(thread, waiting)
    assert budget.used == 0


async def wait_for(budget: PixelBudget, pixels: int) -> None:
    async with budget.hold(pixels, soon()):
        pass


async def test_an_image_larger_than_the_budget_waits_to_be_alone() -> None:
    budget = PixelBudget(10)
    async with budget.hold(1, soon()):
        with pytest.raises(DeadlineExceeded):
            async with budget.hold(50, soon(0.01)):
                pass
    async with budget.hold(50, soon()):
        assert budget.used == 10
    assert budget.used == 0


async def test_one_that_gives_up_lets_the_next_through() -> None:
    budget = PixelBudget(10)
    entered = asyncio.Event()

    async def small() -> None:
        async with budget.hold(2, soon()):
            entered.set()

    async def large() -> None:
        async with budget.hold(10, soon()):
            raise AssertionError("there is no room")

    async with budget.hold(8, soon()):
        waiting = asyncio.create_task(large())
        await asyncio.sleep(0)
        following = asyncio.create_task(small())
        await asyncio.sleep(0)
        assert not entered.is_set()
        waiting.cancel()
        await asyncio.wait({waiting})
        await following
    assert budget.used == 0


async def test_a_cancel_in_the_moment_of_the_turn_gives_the_pixels_back() -> None:
    budget = PixelBudget(10)

    async def hold() -> None:
        async with budget.hold(10, soon()):
            raise AssertionError("it was cancelled before")

    async with budget.hold(10, soon()):
        waiting = asyncio.create_task(hold())
        await asyncio.sleep(0)
    waiting.cancel()  # its turn has come, but it has not run since
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    assert budget.used == 0


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


@pytest.mark.parametrize("prefix", ["", "/images"])
@pytest.mark.parametrize("path", sorted(IMAGE_PATHS))
def test_an_image_is_refused_before_anything_else_of_it_is_looked_at(
    make_client: Callable[..., TestClient], path: str, prefix: str
) -> None:
    client = make_client(queue_images=8, root_path=prefix)
    metric = f'predict_requests_total{{outcome="overloaded",route="{path}"}} 1.0'
    with client.app.state.service.engine.reserve(8):
        # Routing would say 422 of the parameter, and the route 415 of the body.
        refused = client.post(f"{path}?top_k=none&class_id=none", json={})
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert refused.headers["Retry-After"]
        assert client.get(path).status_code == 405
        assert client.post("/nowhere").status_code == 404
        assert client.get("/model").status_code == 200
    assert metric in client.get("/metrics").text
    assert client.post(f"{path}?top_k=none&class_id=none", json={}).status_code in (415, 422)


def test_one_free_place_is_enough_to_be_let_in(make_client: Callable[..., TestClient], cat: bytes) -> None:
    client = make_client(queue_images=8)
    with client.app.state.service.engine.reserve(7):
        assert client.post("/predict", content=cat).status_code == 200
