"""Who gets memory and places when there is too little of them for all."""

import asyncio
from collections.abc import Coroutine

import pytest

from app.api.fair_share import Claim, FairShare
from app.api.request_context import client_address, network_of
from app.errors import Overloaded
from app.inference.places import Places

LIMIT = 100


class Requests:
    """Requests that hold bytes or places until they are told to end, or are pushed out."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.share = FairShare(LIMIT)
        self.places = Places(LIMIT)
        self.log: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def _request(self, name: str, network: str, amount: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        claim = Claim(self.share, network, task)
        try:
            if self.kind == "bytes":
                await claim.take_bytes(amount)
                self.log.append(f"{name} in")
                await asyncio.Event().wait()
            else:
                async with self.share.places(claim, self.places, amount):
                    self.log.append(f"{name} in")
                    await asyncio.Event().wait()
        except Overloaded:
            self.log.append(f"{name} refused")
        except asyncio.CancelledError:
            self.log.append(f"{name} {'out' if claim.displaced else 'done'}")
        finally:
            self.share.release(claim)

    async def ask(self, name: str, network: str, amount: int) -> None:
        self.tasks[name] = asyncio.create_task(self._request(name, network, amount))
        await self.settle()

    async def end(self, *names: str) -> None:
        for name in names or list(self.tasks):
            self.tasks.pop(name).cancel()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def used(self) -> int:
        return self.share.used_bytes if self.kind == "bytes" else self.places.reserved


@pytest.fixture(params=["bytes", "places"])
def requests(request: pytest.FixtureRequest) -> Requests:
    return Requests(request.param)


async def test_one_network_alone_may_hold_everything_and_no_more(requests: Requests) -> None:
    await requests.ask("a", "one", 60)
    await requests.ask("b", "one", 40)
    await requests.ask("c", "one", 1)
    assert requests.log == ["a in", "b in", "c refused"] and requests.used == LIMIT
    await requests.end("a")
    await requests.ask("d", "one", 60)
    assert requests.log[-1] == "d in"
    await requests.end("b", "d")
    assert requests.used == 0


async def test_the_largest_holder_gives_up_its_largest_and_newest_body(requests: Requests) -> None:
    for name, amount in (("a", 40), ("b", 20), ("c", 40)):
        await requests.ask(name, "one", amount)
    await requests.ask("x", "two", 10)
    assert requests.log[3:] == ["c out", "x in"] and requests.used == 70


async def test_several_holders_give_way_if_necessary(requests: Requests) -> None:
    for number in range(10):
        await requests.ask(f"a{number}", "one", 10)
    await requests.ask("x", "two", 25)
    assert requests.log[10:] == ["a9 out", "a8 out", "a7 out", "x in"] and requests.used == 95


async def test_a_network_is_not_displaced_by_one_that_would_hold_as_much(requests: Requests) -> None:
    await requests.ask("a", "one", 50)
    await requests.ask("x", "two", 50)
    for name, network, amount in (("b", "one", 1), ("y", "two", 1), ("z", "three", 50)):
        await requests.ask(name, network, amount)
        assert requests.log[-1] == f"{name} refused"
    await requests.ask("w", "three", 49)
    assert requests.log[-1] == "w in" and requests.used == 99


async def test_two_networks_do_not_displace_each_other_in_turn(requests: Requests) -> None:
    for number in range(50):
        await requests.ask(f"a{number}", "one", 2)
    for number in range(200):
        await requests.ask(f"x{number}", ("one", "two")[number % 2], 2)
    out = [line for line in requests.log if line.endswith(" out")]
    assert len(out) == 25 and all(line.startswith("a") for line in out)
    assert requests.used == LIMIT


async def test_a_body_that_never_fits_displaces_nothing(requests: Requests) -> None:
    await requests.ask("a", "one", 90)
    await requests.ask("x", "two", LIMIT + 1)
    assert requests.log == ["a in", "x refused"]


async def test_while_a_network_waits_larger_holders_get_nothing_new(requests: Requests) -> None:
    async def at_once(*asked: Coroutine[None, None, None]) -> None:
        await asyncio.gather(*asked)

    await requests.ask("a", "one", 50)
    await requests.ask("b", "one", 50)
    await at_once(requests.ask("x", "two", 10), requests.ask("c", "one", 10), requests.ask("d", "one", 10))
    assert "x in" in requests.log and {"c refused", "d refused"} <= set(requests.log)


async def test_waiting_for_a_displaced_request_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.fair_share.DISPLACE_SECONDS", 0.01)
    share = FairShare(LIMIT)
    stubborn = asyncio.ensure_future(asyncio.sleep(0))
    await share.take_bytes(Claim(share, "one", stubborn), LIMIT)
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(Overloaded):
        await share.take_bytes(Claim(share, "two", task), 1)
    await asyncio.wait({stubborn})


async def test_a_check_predicts_the_decision() -> None:
    share, places = FairShare(LIMIT), Places(LIMIT)
    task = asyncio.current_task()
    assert task is not None
    await share.take_bytes(Claim(share, "one", task), 90)
    share.check_bytes("one", 10)
    share.check_bytes("two", 89)
    for network, amount in (("one", 11), ("two", 90), ("two", LIMIT + 1)):
        with pytest.raises(Overloaded):
            share.check_bytes(network, amount)
    async with share.places(Claim(share, "one", task), places, 90):
        share.check_places("one", places, 10)
        share.check_places("two", places, 89)
        for network, amount in (("one", 11), ("two", 90)):
            with pytest.raises(Overloaded):
                share.check_places(network, places, amount)


NETWORKS = [
    ("203.0.113.9", "203.0.113.9"),
    ("::ffff:203.0.113.9", "203.0.113.9"),
    ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
    ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
    ("fe80::1%eth0", "fe80::/64"),
]


@pytest.mark.parametrize(("address", "network"), NETWORKS)
def test_addresses_belong_to_networks(address: str, network: str) -> None:
    assert network_of(address) == network
    assert client_address({"client": (address, 1)}) == address


@pytest.mark.parametrize(
    "text", ["", "x", "203.0.113.9 ", "203.0.113", "\n", "1" * 60_000, "fe80::1%\n", "fe80::1%" + "x" * 99, "::1\n"]
)
def test_invalid_addresses_are_left_out(text: str) -> None:
    assert network_of(text) == "" and client_address({"client": (text, 1)}) == ""
    assert client_address({"client": None}) == client_address({}) == ""
