"""What a client meets that sends too much, too slowly or not at all; on a real server, but for the middleware alone."""

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from app.api.middleware.lingering_close import LingeringClose
from tests.app.problems import assert_problem
from tests.app.server import serve

LARGE = 40_000_000  # more than MAX_REQUEST_BYTES, and than all buffers of a connection
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    with serve(MAX_INFLIGHT_BODY_BYTES=30_000_000, DEADLINE_SECONDS=30, LOG_LEVEL="error") as (_, client):
        yield client


def address(client: httpx.Client) -> tuple[str, int]:
    return client.base_url.host, client.base_url.port


def to_the_end(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def send_all_then_read(client: httpx.Client, head: bytes, body: bytes) -> bytes:
    """As clients do that look for an answer only once they have sent everything."""
    with socket.create_connection(address(client), timeout=30) as connection:
        connection.sendall(POST + head + b"\r\n" + body)
        return to_the_end(connection)


REFUSED = [
    ("/predict", LARGE, 413),
    ("/predict", 31_000_000, 429),  # the budget of bodies
    ("/nowhere", 31_000_000, 429),
    ("/nowhere", 20_000_000, 404),
    ("/predict?top_k=99", 20_000_000, 422),
]


@pytest.mark.parametrize(("path", "size", "status"), REFUSED)
def test_a_client_that_still_sends_gets_its_answer(server: httpx.Client, path: str, size: int, status: int) -> None:
    for _ in range(5):
        response = server.post(path, content=bytes(size))
        assert response.status_code == status
        assert response.json()["status"] == status
    assert server.get("/readyz").status_code == 200


def test_so_does_one_that_does_not_know_how_much_it_sends(server: httpx.Client) -> None:
    pieces = [bytes(1_000_000)] * 40
    assert_problem(server.post("/predict", content=iter(pieces)), 413, "payload_too_large")


def test_so_does_one_that_reads_only_when_it_has_sent_everything(server: httpx.Client) -> None:
    answer = send_all_then_read(server, b"Content-Length: %d\r\n" % LARGE, bytes(LARGE))
    assert answer.startswith(b"HTTP/1.1 413") and b'"payload_too_large"' in answer


@pytest.mark.parametrize("options", [[], ["-H", "Expect:"], ["-H", "Expect:", "-H", "Transfer-Encoding: chunked"]])
def test_so_does_curl(server: httpx.Client, tmp_path: Path, options: list[str]) -> None:
    curl = shutil.which("curl")
    assert curl, "install curl"
    large = tmp_path / "large"
    large.write_bytes(bytes(LARGE))
    command = [curl, "-sS", "-T", str(large), "-X", "POST", "-w", "%{http_code}", f"{server.base_url}/predict"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("413") and '"payload_too_large"' in done.stdout


def test_the_connection_can_be_used_again(server: httpx.Client) -> None:
    connection = http.client.HTTPConnection(*address(server), timeout=30)
    for _ in range(2):
        connection.putrequest("POST", "/nowhere")
        connection.putheader("Content-Length", "9")
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 404 and json.load(response)["code"] == "not_found"
        connection.send(b"123456789")
    connection.close()


def test_who_asks_before_sending_sends_nothing(server: httpx.Client) -> None:
    with socket.create_connection(address(server), timeout=30) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % LARGE)
        answer = to_the_end(connection)
    assert answer.startswith(b"HTTP/1.1 413") and b"100 Continue" not in answer


def test_who_asks_and_may_send_is_told_so(server: httpx.Client, cat: bytes) -> None:
    with socket.create_connection(address(server), timeout=30) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(cat))
        assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        connection.sendall(cat)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


SLOW = {
    "nothing": b"",
    "half a line": b"GET /livez HT",
    "headers without end": b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Endless: ",
    "a body that is not wanted": b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
}


def wait_to_be_left(connection: socket.socket, dribble: bytes) -> None:
    """Send on, as slowly as a client likes, until the other side closes."""
    connection.settimeout(0.1)
    while True:
        try:
            if not connection.recv(65536):
                return
        except TimeoutError:
            try:
                connection.sendall(dribble)
            except ConnectionError:
                return
        except ConnectionError:
            return


def test_a_client_of_which_nothing_comes_is_left() -> None:
    with serve(DEADLINE_SECONDS=0.5, LOG_LEVEL="error") as (_, client):
        for name, said in SLOW.items():
            with socket.create_connection(address(client), timeout=30) as connection:
                connection.sendall(said)
                wait_to_be_left(connection, b"y" if said else b"")
            assert client.get("/livez").status_code == 200, name


def test_a_client_that_does_not_take_its_answer_is_left(cat: bytes) -> None:
    with serve(DEADLINE_SECONDS=0.5, LOG_LEVEL="error") as (process, client):
        with socket.create_connection(address(client), timeout=30) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(b"GET /metrics/report/confusion_matrix.png HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            for under_way in (2, 1):  # with the one that asks; the other waits to be sent, until it is given up
                while f"predict_inflight_requests {under_way}.0" not in client.get("/metrics").text:
                    pass
        assert client.get("/livez").status_code == 200


FAT = {
    "one header": b"X: " + b"y" * 70_000,
    "many headers": b"aa:b\r\n" * 2_000,
    "a header that does not end": b"X: " + b"y" * 700_000,
    "an address": None,
}


@pytest.mark.parametrize("name", FAT)
@pytest.mark.parametrize("piece", [1_000, 1_000_000])
def test_headers_are_of_a_size(server: httpx.Client, name: str, piece: int) -> None:
    head, end = FAT[name] or b"", b"" if "not end" in name else b"\r\n\r\n"
    sent = b"GET /livez?" + b"y" * (70_000 if FAT[name] is None else 1) + b" HTTP/1.1\r\nHost: x\r\n" + head + end
    with socket.create_connection(address(server), timeout=30) as connection:
        for start in range(0, len(sent), piece):
            connection.sendall(sent[start : start + piece])
        answer = to_the_end(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    headers, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in headers and b"connection: close" in headers
    assert json.loads(body)["code"] == "malformed_request"
    assert "larger than the 65,536 bytes" in json.loads(body)["detail"]


def test_large_headers_that_are_allowed_and_what_comes_after_them(server: httpx.Client) -> None:
    connection = http.client.HTTPConnection(*address(server), timeout=30)
    for _ in range(3):
        connection.request("GET", "/livez", headers={"X": "y" * 50_000})
        response = connection.getresponse()
        assert response.status == 200 and json.load(response) == {"status": "alive"}
    connection.close()


def test_what_is_no_http_is_a_problem_too(server: httpx.Client) -> None:
    with socket.create_connection(address(server), timeout=30) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00")  # a browser that tries TLS
        headers, _, body = to_the_end(connection).partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(body)["detail"] == "this is no HTTP that can be parsed"
    assert f"content-length: {len(body)}".encode() in headers


async def test_reading_on_ends_with_the_deadline() -> None:
    sent: list[dict] = []

    async def endless() -> AsyncIterator[dict]:
        while True:
            yield {"type": "http.request", "body": b"x", "more_body": True}
            await asyncio.sleep(0.001)

    async def refuse(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": [(b"content-length", b"9")]}
    await LingeringClose(refuse, 0.05)(scope, endless().__anext__, send)
    assert [message.get("body") for message in sent] == [None, b"no", None]
    assert [message.get("more_body", False) for message in sent] == [False, True, False]
