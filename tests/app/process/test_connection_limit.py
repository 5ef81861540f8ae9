"""Fewer connections than descriptors: who is closed, and that probes are answered."""

import contextlib
import json
import logging
import resource
import signal
import socket
from dataclasses import dataclass, field

import pytest

from app.process.connection_limit import (
    MAX_CONNECTIONS,
    ConnectionLimit,
    DescriptorsError,
    most_connections,
    require_descriptors,
)
from tests.app.server import serve


@dataclass(eq=False)
class Connection:
    address: str
    idle: bool = True
    open: bool = True
    client: tuple[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.client = self.address, 1

    @property
    def transport(self) -> "Connection":
        return self

    def abort(self) -> None:
        self.open = False


def filled(limit: ConnectionLimit, *connections: Connection) -> list[bool]:
    for connection in connections:
        limit.add(connection)
    return [connection.open for connection in connections]


def test_a_connection_over_the_limit_closes_the_longest_idle_one() -> None:
    limit = ConnectionLimit(3)
    first, second, third, fourth, fifth = (Connection("one") for _ in range(5))
    filled(limit, first, second, third)
    limit.touch(first)
    filled(limit, fourth)
    assert [first.open, second.open] == [True, False]
    limit.remove(second)  # as it is when it is lost: it is counted once
    third.idle = False
    filled(limit, fifth)
    assert [first.open, third.open, fourth.open, fifth.open] == [False, True, True, True]


def test_the_network_with_the_most_connections_loses_one() -> None:
    limit = ConnectionLimit(3)
    old = Connection("203.0.113.9")
    crowd = [Connection(f"2001:db8::{number}") for number in range(9)]
    assert filled(limit, old, *crowd) == [True, *[False] * 7, True, True]


def test_a_connection_over_the_limit_is_closed_if_no_other_is_idle() -> None:
    limit = ConnectionLimit(2)
    busy = [Connection("one", idle=False) for _ in range(2)]
    new = Connection("one")
    assert filled(limit, *busy, new) == [True, True, False]
    limit.remove(busy[0])
    assert filled(limit, Connection("one")) == [True]


def test_closing_connections_at_the_limit_is_logged_at_intervals(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        filled(ConnectionLimit(1), *(Connection("one") for _ in range(100)))
    (record,) = caplog.records
    assert record.fields == {"closed": 1, "most": 1}


@pytest.mark.parametrize("allowed", [1, 64, 1024, 1 << 30, resource.RLIM_INFINITY])
def test_the_connection_limit_is_below_that_of_descriptors(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    assert 1 <= most_connections() <= MAX_CONNECTIONS
    assert allowed < 64 or most_connections() < allowed or allowed == resource.RLIM_INFINITY


@pytest.mark.parametrize("allowed", [64, 1024, resource.RLIM_INFINITY])
def test_64_descriptors_suffice(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    require_descriptors()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (63, allowed))
    with pytest.raises(DescriptorsError, match="only 63 files may be open, 64 are needed"):
        require_descriptors()


def test_with_too_few_descriptors_the_service_says_so_in_one_line() -> None:
    with pytest.raises(AssertionError) as ended, serve(descriptors=12):
        pass
    assert str(ended.value).splitlines()[1:] == ["error: only 12 files may be open, 64 are needed (ulimit -n)"]


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nX: "])
def test_probes_are_answered_while_others_hold_connections_open(said: bytes) -> None:
    with serve(descriptors=80) as (process, client), contextlib.ExitStack() as idle:
        address = client.base_url.host, client.base_url.port
        for _ in range(120):
            connection = idle.enter_context(socket.create_connection(address, timeout=30))
            connection.sendall(said)
            with contextlib.closing(socket.create_connection(address, 30, source_address=("127.0.0.2", 0))) as probe:
                probe.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert probe.recv(65536).startswith(b"HTTP/1.1 200 ")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr]
    said_so = [line for line in lines if line["message"] == "closed connections: there are too many"]
    assert said_so and "error" not in {line["level"] for line in lines}
