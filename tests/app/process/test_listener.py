"""The port is bound before anything else, or the reason why not is one line."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from app.bundle import Bundle
from app.inference.sessions import Session
from app.main import create_app
from app.process import listener
from app.process.listener import BindError, bind
from app.process.server import Server
from app.settings import Settings


@contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    sockets = bind(host, port)
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()


def test_a_bound_port_is_reserved_and_does_not_listen_yet() -> None:
    with bound("127.0.0.1", 0) as (first,):
        port = first.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)
        first.listen()
        with pytest.raises(BindError, match=rf"cannot serve at '127\.0\.0\.1', port {port}: Address already in use"):
            bind("127.0.0.1", port)


def test_a_port_that_was_served_a_moment_ago_is_free_again() -> None:
    with bound("127.0.0.1", 0) as (server,):
        server.listen()
        address = server.getsockname()
        with socket.create_connection(address, timeout=10):
            server.accept()[0].close()  # the side that closes first keeps the port for a minute
    with bound(*address) as again:
        assert len(again) == 1


def test_an_empty_host_stands_for_all_addresses() -> None:
    with bound("", 0) as sockets:
        assert {each.getsockname()[0] for each in sockets} <= {"0.0.0.0", "::"}
        assert sockets


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "x" * 300, "127.0.0.1:80", "http://x", "::1::"])
def test_an_unknown_host_is_an_error_of_one_line(host: str) -> None:
    with pytest.raises(BindError, match="HOST, PORT: cannot serve at") as refused:
        bind(host, 0)
    assert "\n" not in str(refused.value)


def test_an_address_of_another_machine_is_an_error_of_one_line() -> None:
    with pytest.raises(BindError, match="Cannot assign requested address"):
        bind("192.0.2.1", 0)


def test_a_port_that_is_not_permitted_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(socket.socket):
        def bind(self, address: Any) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket", Refused)
    with pytest.raises(BindError, match="port 80: Permission denied"):
        bind("127.0.0.1", 80)


def test_an_address_family_that_is_switched_off_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    v4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    elsewhere = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [elsewhere, v4, v4])
    with bound("localhost", 0) as sockets:
        assert [each.getsockname()[0] for each in sockets] == ["127.0.0.1"]


def test_nothing_stays_bound_when_one_address_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    def remember(*arguments: Any) -> socket.socket:
        if made:
            raise OSError(98, "in use")
        made.append(original(*arguments))
        return made[0]

    original = listener._bind
    monkeypatch.setattr(listener, "_bind", remember)
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("127.0.0.1", "127.0.0.2")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: both)
    with pytest.raises(BindError, match="already in use"):
        bind("localhost", 0)
    assert made[0].fileno() == -1


async def test_a_port_taken_between_binding_and_listening_is_an_error_of_one_line(
    loaded: tuple[Bundle, Session],
) -> None:
    settings = Settings(inference_threads=1)
    app = create_app(settings, loaded)
    with bound("127.0.0.1", 0) as (first,), bound("127.0.0.1", first.getsockname()[1]) as second:
        first.listen()
        server = Server(app, settings)
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        with pytest.raises(BindError, match="Address already in use"):
            await server.startup(second)
    assert not app.state.service.engine.alive
