import asyncio

import pytest

from app.process.turns import Turns


class Log:
    """Notes whose turn came."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.began: list[str] = []

    def ask(self, client: str) -> None:
        def go_on() -> None:
            self.began.append(client)

        if self.turns.take(client, go_on):
            go_on()

    async def run(self, iterations: int) -> None:
        for _ in range(iterations):
            await asyncio.sleep(0)


@pytest.fixture
def log() -> Log:
    return Log(Turns(most=2))


async def test_a_client_alone_has_its_turn_at_once(log: Log) -> None:
    for number in range(3):
        log.ask("one")
        await log.run(1)
        assert len(log.began) == number + 1


async def test_each_iteration_gives_a_few_turns(log: Log) -> None:
    for _ in range(5):
        log.ask("one")
    began = [len(log.began)]
    for _ in range(3):
        await log.run(1)
        began.append(len(log.began))
    assert began == [2, 4, 5, 5]


async def test_clients_take_turns_however_much_one_of_them_asks(log: Log) -> None:
    for _ in range(100):
        log.ask("many")
    log.ask("one")
    log.ask("other")
    await log.run(2)
    assert {"one", "other"} <= set(log.began)


async def test_turns_that_were_taken_while_others_wait_come_after_them(log: Log) -> None:
    for client in ("a", "b", "c", "d"):
        log.ask(client)
    await log.run(1)
    log.ask("e")
    await log.run(3)
    assert log.began == ["a", "b", "c", "d", "e"]


async def test_whoever_never_waits_keeps_nothing(log: Log) -> None:
    for _ in range(10):
        log.ask("one")
    await log.run(10)
    assert len(log.began) == 10
    assert not log.turns._waiting
