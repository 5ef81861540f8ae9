"""The port is bound before anything else, or the reason why not is one line."""

import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.bundle import Bundle
from app.inference.sessions import Session
from app.main import create_app
from app.process import listener
from app.process.listener import BindError, bind, bind_file
from app.process.listener import bound as bound_for
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


@pytest.mark.parametrize("host", ["", "::"])
def test_an_empty_host_and_two_colons_stand_for_all_addresses(host: str) -> None:
    with bound(host, 0) as sockets:
        addresses = {each.getsockname()[0] for each in sockets}
        assert "0.0.0.0" in addresses
        assert addresses <= {"0.0.0.0", "::"}
        for each in sockets:
            each.listen()
            loopback = "127.0.0.1" if each.family == socket.AF_INET else "::1"
            socket.create_connection((loopback, each.getsockname()[1]), timeout=10).close()


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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "service.sock"


def test_a_unix_socket_is_for_its_owner_and_group_and_goes_at_the_end(path: Path) -> None:
    with bound_for(Settings(uds=path)) as (opened,):
        assert stat.filemode(path.stat().st_mode) == "srw-rw----"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        assert opened.family == socket.AF_UNIX
    assert not path.exists()


def test_the_file_of_a_killed_process_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with bound_for(Settings(uds=path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_unix_socket_in_use_is_refused_and_left_alone(path: Path) -> None:
    with bound_for(Settings(uds=path)):
        inode = path.stat().st_ino
        with pytest.raises(BindError, match=r"^UDS: cannot serve at '.*service\.sock': Address already in use$"):
            bind_file(path)
        assert path.stat().st_ino == inode


def test_a_unix_socket_that_another_process_has_taken_over_stays(path: Path) -> None:
    with bound_for(Settings(uds=path)) as (opened,):
        opened.close()
        successor = bind_file(path)
    with successor:
        assert path.exists()


def test_a_unix_socket_without_a_place_in_its_queue_is_in_use(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        with pytest.raises(BindError, match="already in use"):
            bind_file(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a file", "there is a file that is no socket"),
        ("a folder", "there is a file that is no socket"),
        ("nowhere/service.sock", "No such file or directory"),
        ("a file/service.sock", "Not a directory"),
        ("x" * 110, "AF_UNIX path too long"),
        ("a\0b", "embedded null"),
    ],
)
def test_a_place_for_no_unix_socket_is_an_error_of_one_line(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "a file").write_text("content")
    (tmp_path / "a folder").mkdir()
    with pytest.raises(BindError, match=f"^UDS: cannot serve at .*: .*{reason}.*$"):
        bind_file(tmp_path / name)
    assert (tmp_path / "a file").read_text() == "content"
