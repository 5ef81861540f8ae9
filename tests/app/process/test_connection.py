"""What a client meets that sends too much, too slowly or not at all; on a real server, but for the middleware alone."""

import asyncio
import contextlib
import http.client
import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.api.middleware.lingering_close import LingeringClose
from app.process.server import PATIENCE
from tests.app.problems import assert_problem
from tests.app.server import serve
from tests.benchmarks.serving.processes import descriptors, resident_mb

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


def test_a_client_that_sends_chunks_of_unknown_length_gets_its_answer(server: httpx.Client) -> None:
    pieces = [bytes(1_000_000)] * 40
    assert_problem(server.post("/predict", content=iter(pieces)), 413, "payload_too_large")


def test_a_client_that_reads_only_after_sending_gets_its_answer(server: httpx.Client) -> None:
    answer = send_all_then_read(server, b"Content-Length: %d\r\n" % LARGE, bytes(LARGE))
    assert answer.startswith(b"HTTP/1.1 413") and b'"payload_too_large"' in answer


@pytest.mark.parametrize("options", [[], ["-H", "Expect:"], ["-H", "Expect:", "-H", "Transfer-Encoding: chunked"]])
def test_curl_gets_the_answer_to_a_body_that_is_too_large(
    server: httpx.Client, tmp_path: Path, options: list[str]
) -> None:
    curl = shutil.which("curl")
    assert curl, "install curl"
    large = tmp_path / "large"
    large.write_bytes(bytes(LARGE))
    command = [curl, "-sS", "-T", str(large), "-X", "POST", "-w", "%{http_code}", f"{server.base_url}/predict"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("413") and '"payload_too_large"' in done.stdout


def test_a_connection_can_be_used_again_after_an_unread_body(server: httpx.Client) -> None:
    connection = http.client.HTTPConnection(*address(server), timeout=30)
    for _ in range(2):
        connection.putrequest("POST", "/nowhere")
        connection.putheader("Content-Length", "9")
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 404 and json.load(response)["code"] == "not_found"
        connection.send(b"123456789")
    connection.close()


def test_expect_100_continue_is_refused_before_a_large_body(server: httpx.Client) -> None:
    with socket.create_connection(address(server), timeout=30) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % LARGE)
        answer = to_the_end(connection)
    assert answer.startswith(b"HTTP/1.1 413") and b"100 Continue" not in answer


def test_expect_100_continue_is_confirmed_before_an_accepted_body(server: httpx.Client, cat: bytes) -> None:
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


def test_a_connection_without_progress_is_closed() -> None:
    with serve(DEADLINE_SECONDS=0.5, LOG_LEVEL="error") as (_, client):
        for name, said in SLOW.items():
            with socket.create_connection(address(client), timeout=30) as connection:
                connection.sendall(said)
                wait_to_be_left(connection, b"y" if said else b"")
            assert client.get("/livez").status_code == 200, name


PICTURE = b"GET /metrics/report/confusion_matrix.png HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_connection_whose_answers_are_not_read_is_closed() -> None:
    with serve(DEADLINE_SECONDS=0.5, LOG_LEVEL="error") as (process, client):
        assert client.get("/livez").status_code == 200
        before = descriptors(process.pid)
        with socket.create_connection(address(client), timeout=30) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(PICTURE * 100)
            while descriptors(process.pid) == before:  # it is not accepted yet
                pass
            while descriptors(process.pid) > before:
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
def test_headers_that_are_too_large_are_refused(server: httpx.Client, name: str, piece: int) -> None:
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


def test_large_headers_within_the_limit_are_accepted_repeatedly(server: httpx.Client) -> None:
    connection = http.client.HTTPConnection(*address(server), timeout=30)
    for _ in range(3):
        connection.request("GET", "/livez", headers={"X": "y" * 50_000})
        response = connection.getresponse()
        assert response.status == 200 and json.load(response) == {"status": "alive"}
    connection.close()


def test_bytes_that_are_not_http_are_answered_with_a_problem(server: httpx.Client) -> None:
    with socket.create_connection(address(server), timeout=30) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00")  # a browser that tries TLS
        headers, _, body = to_the_end(connection).partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(body)["detail"] == "this is no HTTP that can be parsed"
    assert f"content-length: {len(body)}".encode() in headers


async def test_discarding_a_body_ends_at_the_deadline() -> None:
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


def talk(client: httpx.Client, *pieces: bytes) -> bytes:
    """Send the pieces, and read until the other side closes."""
    with socket.create_connection(address(client), timeout=30) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return to_the_end(connection)


def statuses(answers: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3})", answers)]


def post(path: str, content: bytes, more: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n".encode()
    return head + more + b"\r\n" + content


def chunked(path: str, *chunks: bytes, end: bytes = b"0\r\n\r\n", more: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n".encode()
    return head + more + b"\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end


GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: %s\r\n"


@pytest.mark.parametrize("size", [1, 50, 100_000])
def test_pipelined_requests_are_answered_in_order(server: httpx.Client, cat: bytes, size: int) -> None:
    image = chunked("/predict", cat[:9], cat[9:])
    sent = GET + post("/predict", cat) + post("/nowhere", b"x" * 20_000) + image + b"\r\n" + GET + LAST + GET
    answers = talk(server, *(sent[at : at + size] for at in range(0, len(sent), size)))
    assert statuses(answers) == [200, 200, 404, 200, 200, 200]
    assert answers.count(b'"alive"') == 2 and answers.rindex(b'"ready"') > answers.rindex(b'"alive"')


def test_more_pipelined_requests_than_are_read_ahead_are_all_answered(server: httpx.Client) -> None:
    assert statuses(talk(server, GET * 2000 + LAST)) == [200] * 2001


@pytest.fixture(scope="module")
def flooded() -> Iterator[tuple[int, httpx.Client]]:
    with serve(LOG_LEVEL="error") as (process, client):
        for _ in range(100):
            assert client.get("/metrics/report/confusion_matrix.png").status_code == 200
        yield process.pid, client


FLOODS = {
    "small requests": GET * 13_000,
    "requests without Host": b"GET /livez HTTP/1.1\r\n\r\n" * 13_000,
    "pictures": PICTURE * 4_000,
    "refused bodies": post("/nowhere", b"x") * 4_000,
    "garbage behind a request": GET + b"\0" * 300_000,
    "empty lines behind a request": GET + b"\r\n" * 150_000,
}


@pytest.mark.parametrize("name", FLOODS)
def test_pipelined_requests_with_unread_answers_take_no_memory(flooded: tuple[int, httpx.Client], name: str) -> None:
    pid, client = flooded
    before = resident_mb(pid)
    with contextlib.ExitStack() as connections:
        for _ in range(30):
            connection = connections.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(address(client))
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                connection.send(FLOODS[name])
        for _ in range(50):  # each waits for its turn among the others
            assert client.get("/livez").status_code == 200
            assert resident_mb(pid) - before < 40


def test_a_disconnect_is_noticed_while_the_request_waits(cat: bytes) -> None:
    with serve(INFERENCE_THREADS=1) as (process, client):
        assert process.stderr is not None
        for behind in (b"", GET * 3, GET[:9]):
            with socket.create_connection(address(client), timeout=30) as connection:
                connection.sendall(post("/predict", cat)[:-1])
                while "predict_inflight_requests 2.0" not in client.get("/metrics").text:
                    pass
                connection.sendall(cat[-1:] + behind)
                connection.close()
            while "predict_inflight_requests 1.0" not in client.get("/metrics").text:
                pass  # the server has seen the end of the request
        process.send_signal(signal.SIGINT)
        lines = [json.loads(line) for line in process.stderr if '"/predict"' in line]
    # One that was answered before its client was seen to leave has status 200.
    assert len(lines) == 3 and {line["status"] for line in lines} <= {200, 499}


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"nonsense"])
@pytest.mark.parametrize("encode", [post, lambda path, content, more: chunked(path, content, more=more)])
def test_an_upgrade_request_is_answered_as_an_ordinary_request(
    server: httpx.Client, cat: bytes, protocol: bytes, encode: Callable[..., bytes]
) -> None:
    get = b"GET /livez HTTP/1.1\r\nHost: x\r\n" + UPGRADE % protocol + b"\r\n"
    answers = talk(server, get + encode("/predict", cat, more=UPGRADE % protocol) + get + LAST)
    assert statuses(answers) == [200] * 4


def test_an_http_1_0_request_is_answered_and_its_connection_closed(server: httpx.Client, cat: bytes) -> None:
    assert statuses(talk(server, b"GET /livez HTTP/1.0\r\n\r\n" + GET)) == [200]
    head = b"POST /predict HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(cat)
    assert statuses(talk(server, head + cat)) == [200]


def test_a_keep_alive_connection_without_further_requests_is_closed(server: httpx.Client) -> None:
    begun = time.monotonic()
    with ThreadPoolExecutor() as threads:  # each connection waits to be closed
        for answers in threads.map(lambda more: talk(server, GET * 3 + more), [b"", b"\r\n", b"\n" * 100]):
            assert statuses(answers) == [200] * 3
    assert time.monotonic() - begun < PATIENCE * 30  # the deadline of this server


def test_expect_100_continue_works_after_another_request_on_the_connection(server: httpx.Client, cat: bytes) -> None:
    answers = talk(server, GET + post("/predict", cat, b"Expect: 100-continue\r\n") + LAST)
    assert statuses(answers) == [200, 100, 200, 200]


def test_trailers_are_read_and_ignored(cat: bytes) -> None:
    with serve(API_KEYS="secret", LOG_LEVEL="error") as (_, client):
        key = b"Authorization: Bearer secret\r\n"
        trailed = chunked("/predict", cat, end=b"0\r\n" + key + b"X: y\r\n\r\n")
        assert statuses(talk(client, trailed, LAST)) == [401, 200]
        trailed = chunked("/predict", cat, end=b"0\r\nX: y\r\n\r\n", more=key)
        assert statuses(talk(client, trailed, LAST)) == [200, 200]


CHUNKED = chunked("/predict", end=b"")
BROKEN = {
    "garbage for a chunk": b"nonsense\r\n",
    "a chunk that is too long": b"1\r\nxyz\r\n",
    "an endless size": b"0" * 100_000,
    "an endless extension": b"1;" + b"x" * 100_000,
    "extensions": (b"1;" + b"x" * 500 + b"\r\ny\r\n") * 1000,
    "an endless trailer": b"1\r\nx\r\n0\r\nX: " + b"y" * 100_000,
    "trailers": b"0\r\n" + b"X: y\r\n" * 20_000,
}


def test_a_malformed_body_is_answered_with_a_problem_for_its_request() -> None:
    with serve(DEADLINE_SECONDS=1) as (process, client):
        instances = []
        with ThreadPoolExecutor() as threads:  # some connections are closed only at the deadline
            answers = list(threads.map(lambda broken: talk(client, CHUNKED, broken), BROKEN.values()))
        for name, answer in zip(BROKEN, answers, strict=True):
            headers, _, body = answer.partition(b"\r\n\r\n")
            assert headers.startswith(b"HTTP/1.1 400 ") and b"connection: close" in headers, name
            document = json.loads(body)
            assert (document["code"], document["type"]) == ("malformed_request", "/problems/malformed_request")
            instances.append(document["instance"])
        metrics = client.get("/metrics").text
        assert f'outcome="malformed_request",route="/predict"}} {len(BROKEN)}.0' in metrics
        assert "internal" not in metrics
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr]
    refused = [line for line in lines if line.get("status") == 400]
    assert sorted(line["request_id"] for line in refused) == sorted(instances)
    assert {(line["outcome"], line["client"]) for line in refused} == {("malformed_request", "127.0.0.1")}
    assert "error" not in {line["level"] for line in lines}


def test_a_file_whose_request_has_a_body_is_sent_whatever_the_body_is() -> None:
    with serve(DEADLINE_SECONDS=1) as (process, client):
        paths = ("/assets/web/main.js", "/assets/swagger/swagger-ui-bundle.js")
        heads = [chunked(path, end=b"").replace(b"POST", b"GET") for path in paths]
        sent = itertools.product(heads, (*BROKEN.values(), b"", b"1\r\nx\r\n"))
        with ThreadPoolExecutor() as threads:  # some connections are closed only at the deadline
            for answers in threads.map(lambda pieces: talk(client, *pieces), sent):
                assert statuses(answers[:15]) in ([200], [400], [408])
        assert "internal" not in client.get("/metrics").text
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "error" not in {json.loads(line)["level"] for line in process.stderr}


NO_REQUEST = {
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two equal Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
    "two Hosts in HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
    "a Host that names no host": b"GET / HTTP/1.1\r\nHost: a/b?\r\n\r\n",
    "a Host with a user": b"GET / HTTP/1.1\r\nHost: me@a\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a length and chunks": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "an unknown coding": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "a coding to upgrade": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n" + UPGRADE % b"x" + b"\r\n",
    "a tunnel": b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "bare line ends": b"GET / HTTP/1.1\nHost: a\n\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
    "zeros": b"\0" * 1000,
    "empty lines": b"\r\n" * 50_000,
}


def test_a_malformed_request_is_logged_and_counted_as_one_problem() -> None:
    with serve() as (process, client):
        instances = []
        for name, sent in NO_REQUEST.items():
            for before in (b"", GET):  # alone, and behind a request that is under way
                *_, headers, body = talk(client, before + sent).split(b"\r\n\r\n")
                assert b"HTTP/1.1 400 Bad Request\r\n" in headers, (name, before)
                document = json.loads(body)
                assert document["code"] == "malformed_request", name
                instances.append(document["instance"])
        metrics = client.get("/metrics").text
        assert f'outcome="malformed_request",route="unmatched"}} {len(instances)}.0' in metrics
        assert "internal" not in metrics
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr]
    refused = [line["request_id"] for line in lines if line.get("outcome") == "malformed_request"]
    assert sorted(refused) == sorted(instances) and len(set(instances)) == len(instances)
    assert "error" not in {line["level"] for line in lines}


@pytest.mark.parametrize("host", ["", "a", "a:80", "a:", "127.0.0.1:1", "[::1]:80", "a_b.c", "%C3%A9.de"])
def test_a_valid_host_is_accepted(server: httpx.Client, host: str) -> None:
    request = f"GET /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    assert statuses(talk(server, request.encode())) == [200]
