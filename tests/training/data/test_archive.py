"""The download of CIFAR-10's archive, from a server of this test."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from training.data import cifar10, tiny_imagenet
from training.data.cifar10 import FOLDER, MEMBERS, unpack
from training.errors import TrainingError

NAME, URL = cifar10.ARCHIVE.name, cifar10.ARCHIVE.variable
CONTENTS = {name: np.random.default_rng(seed).bytes(20_000) for seed, name in enumerate(sorted(MEMBERS))}
PART = f"{NAME}.part"


def packed() -> bytes:
    """An archive with CIFAR-10's files, and with others."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in CONTENTS.items() | {(f"{FOLDER}/readme.html", b"text"), ("../outside", b"text")}:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


ARCHIVE = packed()
HALF = len(ARCHIVE) // 2


class Handler(BaseHTTPRequestHandler):
    """The first part of the path says how the server behaves."""

    server: "Server"

    def do_GET(self) -> None:
        behaviour, asked = self.path.split("/")[1], self.headers.get("Range")
        self.server.asked.append((behaviour, asked))
        whole = self.server.content
        content = {"other": bytes(len(whole)), "page": b"<html>"}.get(behaviour, whole)
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and behaviour != "plain" else 0
        if behaviour == "missing":
            self.send_error(404)
            return
        if first >= len(content):
            self.send_error(416)
            return
        if first:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        breaks = (behaviour == "breaks" and not first) or behaviour == "always_breaks"
        self.wfile.write(content[first : len(whole) // 2] if breaks else content[first:])

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A context manager that answers with one file."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.asked: list[tuple[str, str | None]] = []  # behaviour and range of each request
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def address(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{behaviour}"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    ours = replace(cifar10.ARCHIVE, size=len(ARCHIVE), md5=hashlib.md5(ARCHIVE).hexdigest())
    monkeypatch.setattr(cifar10, "ARCHIVE", ours)
    monkeypatch.delenv(URL, raising=False)
    with Server(ARCHIVE) as running:
        yield running


@pytest.fixture
def mirrors(server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[str]:
    """The addresses to ask, by their behaviours."""
    found = [server.address(behaviour) for behaviour in request.param]
    monkeypatch.setattr(cifar10, "ARCHIVE", replace(cifar10.ARCHIVE, mirrors=tuple(found)))
    return found


def unpacked(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in (folder / FOLDER).iterdir()}


def answered_by(*behaviours: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("mirrors", [behaviours], indirect=True)


@pytest.mark.parametrize(
    ("mirrors", "begun", "asked"),
    [
        (["ranges", "plain"], b"", [("ranges", None)]),
        (["plain"], b"", [("plain", None)]),
        (["missing", "ranges"], b"", [("missing", None), ("ranges", None)]),
        (["other", "ranges"], b"", [("other", None), ("ranges", None)]),
        (["page", "ranges"], b"", [("page", None), ("ranges", None)]),
        # A broken connection is made again, from the byte that it broke at.
        (["breaks"], b"", [("breaks", None), ("breaks", f"bytes={HALF}-")]),
        # What one address began, another one completes.
        (
            ["always_breaks", "ranges"],
            b"",
            [("always_breaks", None), ("always_breaks", f"bytes={HALF}-"), ("ranges", f"bytes={HALF}-")],
        ),
        (["ranges"], ARCHIVE[:1000], [("ranges", "bytes=1000-")]),
        (["plain"], ARCHIVE[:1000], [("plain", "bytes=1000-")]),
        # A part that was damaged is thrown away, not the address.
        (["ranges"], b"damaged", [("ranges", "bytes=7-"), ("ranges", None)]),
        (["page", "ranges"], b"damaged", [("page", "bytes=7-"), ("page", None), ("ranges", None)]),
        (["ranges"], ARCHIVE, []),
    ],
    indirect=["mirrors"],
)
def test_the_archive_is_downloaded_and_unpacked(
    server: Server, mirrors: list[str], tmp_path: Path, begun: bytes, asked: list[tuple[str, str | None]]
) -> None:
    if begun:
        (tmp_path / PART).write_bytes(begun)
    assert unpack(tmp_path, download=True)
    assert server.asked == asked
    assert unpacked(tmp_path) == CONTENTS
    assert sorted(path.name for path in tmp_path.iterdir()) == [FOLDER, NAME]


@answered_by("missing", "other", "page", "always_breaks")
def test_without_the_official_bytes_nothing_is_unpacked_and_one_line_tells_why(
    server: Server, mirrors: list[str], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as error:
        unpack(tmp_path, download=True)
    host = f"127.0.0.1:{server.server_port}"
    assert str(error.value) == (
        f"CIFAR-10 cannot be downloaded ({host}: HTTP 404; {host}: another file; {host}: another file; "
        f"{host}: the connection broke after {HALF:,} bytes): put {NAME} (MD5 {cifar10.ARCHIVE.md5}) into {tmp_path}, "
        f"or set {URL} to an address that has it"
    )
    assert [path.name for path in tmp_path.iterdir()] == [PART]


@answered_by("other")
def test_an_address_of_the_environment_is_the_only_one(
    server: Server, mirrors: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL, mirrors[0].replace("other", "ranges"))
    assert unpack(tmp_path, download=True)
    assert server.asked == [("ranges", None)]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("file:///etc/passwd", "does not begin with http:// or https://"),
        ("mirror", "mirror: its address does not begin"),
        ("http://127.0.0.1:1/", "127.0.0.1:1: Connection refused"),
    ],
)
def test_an_address_that_cannot_be_asked_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    monkeypatch.setenv(URL, address)
    with pytest.raises(TrainingError, match="cannot be downloaded") as error:
        unpack(tmp_path, download=True)
    assert said in str(error.value) and "\n" not in str(error.value)


@answered_by()
def test_an_archive_that_is_there_needs_no_network(server: Server, mirrors: list[str], tmp_path: Path) -> None:
    assert not unpack(tmp_path, download=False)
    (tmp_path / NAME).write_bytes(ARCHIVE[:-1])
    assert not unpack(tmp_path, download=False)
    (tmp_path / NAME).write_bytes(ARCHIVE[:-1] + b"x")
    assert not unpack(tmp_path, download=False)
    assert not (tmp_path / FOLDER).exists()
    (tmp_path / NAME).write_bytes(ARCHIVE)
    assert unpack(tmp_path, download=False)
    assert unpacked(tmp_path) == CONTENTS


def test_the_real_addresses_are_asked_over_https(monkeypatch: pytest.MonkeyPatch) -> None:
    for archive in (cifar10.ARCHIVE, tiny_imagenet.ARCHIVE):
        monkeypatch.delenv(archive.variable, raising=False)
        assert archive.addresses()
        assert all(address.startswith("https://") and archive.name in address for address in archive.addresses())
    assert {FOLDER} == {name.split("/")[0] for name in MEMBERS} and len(MEMBERS) == 7
