"""What networks hold in two workers together, which are here two objects on one board."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.api.fair_share import Claim, FairShare
from app.errors import Overloaded
from app.inference.places import Places
from app.workers.board import PLACES, ROWS, SERVING, Board
from app.workers.holdings import Holdings
from app.workers.post import Post
from app.workers.worker import Worker

pytestmark = pytest.mark.anyio
LIMIT = 100


class Pair:
    """Two workers with a share of LIMIT bytes and places."""

    def __init__(self) -> None:
        self.board, self.post = Board(2), Post(2)
        self.workers = [Worker(self.board, self.post, number) for number in range(2)]
        self.shares = [FairShare(LIMIT, Holdings(worker)) for worker in self.workers]
        self.places = [Places(LIMIT, worker.tally(PLACES)) for worker in self.workers]
        self.tasks: list[asyncio.Task[str]] = []
        for worker, share in zip(self.workers, self.shares, strict=True):
            worker.part.numbers[SERVING] = 1
            worker.mail.on("displace", lambda asked, share=share: share.displace(*asked))
            worker.mail.open()

    async def request(self, worker: int, network: str, amount: int, kind: str) -> str:
        """Hold it until the end. Returns how that came."""
        share = self.shares[worker]
        task = asyncio.current_task()
        assert task is not None
        claim = Claim(share, network, task)
        try:
            if kind == "bytes":
                await claim.take_bytes(amount)
                await asyncio.Event().wait()
            async with share.places(claim, self.places[worker], amount):
                await asyncio.Event().wait()
        except Overloaded:
            return "refused"
        except asyncio.CancelledError:
            return "displaced" if claim.displaced else "ended"
        finally:
            share.release(claim)
        raise AssertionError

    async def begin(self, worker: int, network: str, amount: int, kind: str) -> asyncio.Task[str]:
        task = asyncio.create_task(self.request(worker, network, amount, kind))
        self.tasks.append(task)
        while not task.done() and self.shares[worker]._others.total(kind) + amount > LIMIT:  # type: ignore[union-attr]
            await asyncio.sleep(0.001)
        for _ in range(3):
            await asyncio.sleep(0)
        return task

    def held(self, kind: str) -> list[int]:
        return [share._others.total(kind) for share in reversed(self.shares)]  # type: ignore[union-attr, arg-type]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    for worker in made.workers:
        worker.mail.close()
    made.post.close()
    assert made.held("bytes") == made.held("places") == [0, 0]
    assert [part.numbers[ROWS] for part in made.board.parts] == [0, 0, 0]


@pytest.mark.parametrize("kind", ["bytes", "places"])
async def test_a_limit_is_of_both_workers_together(pair: Pair, kind: str) -> None:
    first = await pair.begin(0, "a", 60, kind)
    second = await pair.begin(1, "a", 40, kind)
    third = await pair.begin(0, "a", 1, kind)
    assert await third == "refused"
    assert not first.done() and not second.done()
    assert pair.held(kind) == [60, 40]


@pytest.mark.parametrize("kind", ["bytes", "places"])
async def test_a_network_that_holds_less_has_a_request_of_another_worker_displaced(pair: Pair, kind: str) -> None:
    small, large = await pair.begin(0, "greedy", 30, kind), await pair.begin(0, "greedy", 70, kind)
    new = await pair.begin(1, "modest", 20, kind)
    assert await large == "displaced"
    while pair.held(kind) != [30, 20]:
        await asyncio.sleep(0.001)
    assert not small.done() and not new.done()


async def test_a_network_that_holds_as_much_elsewhere_displaces_nobody(pair: Pair) -> None:
    one = await pair.begin(0, "a", 50, "places")
    other = await pair.begin(1, "b", 50, "places")
    assert await (await pair.begin(1, "a", 1, "places")) == "refused"
    assert await (await pair.begin(0, "b", 1, "places")) == "refused"
    assert not one.done() and not other.done()


async def test_rows_of_networks_stay_without_gaps(pair: Pair) -> None:
    holdings, part = pair.shares[0]._others, pair.workers[0].part
    assert holdings is not None
    for number in range(4):
        holdings.hold(f"192.0.2.{number}", "bytes", number + 1)
    holdings.hold("192.0.2.1", "bytes", -2)
    assert sorted(part.rows()) == [("192.0.2.0", 1, 0), ("192.0.2.2", 3, 0), ("192.0.2.3", 4, 0)]
    assert pair.shares[1]._others.by_network("bytes")["192.0.2.3"] == 4  # type: ignore[union-attr]
    for number in (3, 0, 2):
        holdings.hold(f"192.0.2.{number}", "bytes", -number - 1)


async def test_places_that_another_worker_takes_at_the_same_moment_are_given_back(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, tally = pair.workers[1].part, pair.places[0]._tally
    add = tally.add

    def both(amount: int) -> None:
        if amount > 0:
            other.numbers[PLACES] += LIMIT
        add(amount)

    monkeypatch.setattr(tally, "add", both)
    with pytest.raises(Overloaded), pair.places[0].reserve(1):
        pass
    assert pair.places[0].reserved == 0
    other.numbers[PLACES] = 0
