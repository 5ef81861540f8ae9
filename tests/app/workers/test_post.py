"""Messages between processes, here of two ends in one event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from app.workers.post import LONGEST, Correspondent, Post

pytestmark = pytest.mark.anyio


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Correspondent, Correspondent]]:
    post = Post(2)
    both = Correspondent(post, 0), Correspondent(post, 1)
    for end in both:
        end.open()
    yield both
    for end in both:
        end.close()
    post.close()


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


@pytest.mark.parametrize("handler", [double, lambda number: 2 * number], ids=["asynchronous", "plain"])
async def test_a_question_is_answered(ends: tuple[Correspondent, Correspondent], handler: Callable[[int], Any]) -> None:
    one, other = ends
    other.on("double", handler)
    assert await one.ask([1], "double", 21, 30) == {1: 42}


async def test_whoever_does_not_answer_in_time_is_left_out(ends: tuple[Correspondent, Correspondent]) -> None:
    one, other = ends
    other.on("double", double)
    assert await one.ask([1, 2], "double", 1, 0.05) == {1: 2}  # nobody reads the supervisor's box
    assert await one.ask([], "double", 1, 30) == {}


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_bug_of_a_handler_is_logged_and_is_no_answer(
    ends: tuple[Correspondent, Correspondent], asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def later(_: object) -> None:
        raise ZeroDivisionError

    one, other = ends
    other.on("divide", later if asynchronous else lambda _: 1 / 0)
    assert await one.ask([1], "divide", None, 0.05) == {}
    assert "a message met a bug" in caplog.text


async def test_what_is_told_needs_no_answer(ends: tuple[Correspondent, Correspondent]) -> None:
    one, other = ends
    heard: list[object] = []
    other.on("word", heard.append)
    one.tell(1, "unknown", 0)
    one.tell(1, "word", ["a", 1])
    while not heard:
        await asyncio.sleep(0)
    assert heard == [["a", 1]]


def test_a_message_that_finds_no_room_is_not_sent() -> None:
    post = Post(1)
    assert not post.send(0, "long", "x" * 4 * LONGEST, sender=1)
    sent = 0
    while post.send(0, "many", sent, sender=1):
        sent += 1
    assert [post.receive(0)["content"] for _ in range(sent)] == list(range(sent))  # type: ignore[index]
    assert post.receive(0) is None
    post.close()
