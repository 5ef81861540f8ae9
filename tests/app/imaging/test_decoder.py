import asyncio
import threading
import time

import pytest

from app.errors import DeadlineExceeded
from app.imaging.decoder import PixelBudget


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


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
