"""app.client against hostile servers: every call ends in a ClientError, in bounded memory."""

import gzip
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import cache

import pytest

from app.client import AnswerTimeoutError, AsyncClient, Client, ClientError, InvalidAnswerError, ProblemError
from tests.conftest import ROOT

MEBIBYTE = 1024 * 1024
ZEROS = bytes(64 * 1024)


class Hostile:
    """A server on 127.0.0.1 that reads a request and then sends `chunks()` until the client leaves.

    For None among the chunks it reads another request. With `reads=False` it reads nothing at all.
    """

    def __init__(self, chunks: Callable[[], Iterable[bytes | None]], *, reads: bool = True) -> None:
        self._chunks, self._reads = chunks, reads
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.connections: list[socket.socket] = []

    def __enter__(self) -> "Hostile":
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads.append(thread := threading.Thread(target=work, args=arguments))
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self.connections.append(self._listener.accept()[0])
                self._start(self._answer, self.connections[-1])

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            if self._reads:
                self._read(connection)
            for chunk in self._chunks():
                if self._over.is_set():
                    return
                if chunk is None:
                    self._read(connection)
                else:
                    connection.sendall(chunk)
            if not self._reads:
                self._over.wait(10)

    def _read(self, connection: socket.socket) -> None:
        seen = b""
        while not (seen.endswith(b"image") or (seen.startswith(b"GET") and b"\r\n\r\n" in seen)):
            seen += connection.recv(65536) or b"image"


def answer(content: bytes = b"", *headers: str, status: str = "200 OK") -> bytes:
    length = (
        "" if any("-Length" in line or "Transfer" in line for line in headers) else f"Content-Length: {len(content)}"
    )
    lines = [f"HTTP/1.1 {status}", *headers, length, "Connection: close"]
    return "\r\n".join(line for line in lines if line).encode("latin-1") + b"\r\n\r\n" + content


def explained(**changed: str) -> bytes:
    headers = {"X-Class-Id": "3", "X-Class-Label": "cat", "X-Class-Probability": "0.5", **changed}
    return answer(b"\x89PNG\r\n\x1a\n", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()))


def nested_gzip(layers: int) -> bytes:
    content = bytes(32 * MEBIBYTE)
    for _ in range(layers):
        content = gzip.compress(content)
    return content


def good() -> dict:
    return {
        "model": {"name": "m", "version": "1"},
        "predictions": [{"label": "cat", "class_id": 3, "probability": 0.5}],
        "views": 1,
        "timing_ms": {"decode": 1, "queue": 1, "inference": 1, "total": 3},
    }


def endless(head: bytes, chunk: bytes) -> Callable[[], Iterable[bytes]]:
    return lambda: itertools.chain([head], itertools.repeat(chunk))


JSON = "Content-Type: application/json"
PROBLEM = "Content-Type: application/problem+json"
ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a status that is no number": b"HTTP/1.1 two OK\r\n\r\n",
    "a status line of zeros": bytes(200),
    "a version that does not exist": b"HTTP/9.9 200 OK\r\n\r\n",
    "an informational answer alone": b"HTTP/1.1 100 Continue\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    "a body that is cut short": answer(b"{", "Content-Length: 10"),
    "a length that is no number": answer(b"{}", "Content-Length: many"),
    "a negative length": answer(b"{}", "Content-Length: -2"),
    "two lengths": answer(b"{}", "Content-Length: 2", "Content-Length: 3"),
    "chunks of no size": answer(b"zz\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
    "a transfer encoding that is none": answer(b"{}", "Transfer-Encoding: gzip"),
    "large headers": answer(b"{}", f"X-Much: {'x' * MEBIBYTE}"),
    "many headers": answer(b"{}", *(f"X-{n}: {n}" for n in range(50_000))),
    "bytes in headers": b"HTTP/1.1 200 OK\r\nX-\x00\xff: \x00\r\nContent-Length: 0\r\n\r\n",
    "an empty body": answer(b"", JSON),
    "no content": answer(b"", status="204 No Content"),
    "no JSON": answer(b"<h1>hello</h1>", JSON),
    "JSON that is cut short": answer(b'{"model": {', JSON),
    "not UTF-8": answer(b'{"model": "\xff\xfe"}', JSON),
    "UTF-16": answer(json.dumps(good()).encode("utf-16"), JSON),
    "a lone surrogate": answer(b'{"model": {"name": "\\ud800", "version": "1"}}', JSON),
    "another document": answer(b"[1, 2, 3]", JSON),
    "null": answer(b"null", JSON),
    "deep JSON": answer(b"[" * 100_000, JSON),
    "deep objects": answer(b'{"model":' * 100_000, JSON),
    "a number of a million digits": answer(b'{"views": ' + b"9" * 1_000_000 + b"}", JSON),
    "a field that is missing": answer(json.dumps(good() | {"predictions": None}).encode(), JSON),
    "no number": answer(b'{"views": NaN, "predictions": Infinity}', JSON),
    "an unknown encoding": answer(b"{}", "Content-Encoding: rot13"),
    "an encoding that does not hold": answer(b"no gzip", "Content-Encoding: gzip"),
    "gzip": answer(gzip.compress(json.dumps(good()).encode()), "Content-Encoding: gzip"),
    "a redirect": answer(b"", "Location: http://127.0.0.1:9/", status="302 Found"),
    "a redirect to itself": answer(b"", "Location: /predict", status="308 Permanent Redirect"),
    "a redirect to nowhere": answer(b"", "Location: http://[", status="302 Found"),
    "a redirect to a scheme alone": answer(b"", "Location: nt-Length: 0", status="302 Found"),
    "a redirect to bytes": answer(b"", "Location: \xff://\xff:99999/\xe9", status="302 Found"),
    "a redirect to a port that is none": answer(b"", "Location: http://a:b/", status="302 Found"),
    "cookies": answer(b"{}", *(f"Set-Cookie: {'c' * n}={'=' * n}; expires={'9' * n}; domain=.." for n in range(1, 90))),
    "a charset that unpacks": answer(b"x", "Content-Type: text/html; charset=zip", status="403 Forbidden"),
    "a charset that is none": answer(b"x", "Content-Type: text/html; charset=undefined", status="403 Forbidden"),
    "a problem in bytes": answer(b"\xff\xfe", PROBLEM, status="422 X"),
    "a deep problem": answer(b'{"code":' + b"[" * 100_000, PROBLEM, status="422 X"),
    "a problem whose members are something else": answer(b'{"code": {}, "detail": [1]}', PROBLEM, status="422 X"),
    "a status beyond all": answer(b"{}", status="999 X"),
    "a reason in bytes": answer(b"{}", status="500 \xe9\xff"),
    "a pause for ever": answer(b"{}", f"Retry-After: {'9' * 5000}", status="503 X"),
    "a pause until no date": answer(b"{}", f"Retry-After: Wed, {'9' * 5000} Oct 1 0:0:0 -0000", status="503 X"),
}
EXPLANATIONS = {
    "no headers": answer(b"\x89PNG\r\n\x1a\n"),
    "no picture": answer(b"", "X-Class-Id: 3", "X-Class-Label: cat", "X-Class-Probability: 0.5"),
    "an id that is no number": explained(X_Class_Id="three"),
    "an id below zero": explained(X_Class_Id="-1"),
    "an id of many digits": explained(X_Class_Id="9" * 5000),
    "a probability that is no number": explained(X_Class_Probability="nan"),
    "a probability above one": explained(X_Class_Probability="1e999"),
}


def ask(url: str, call: str, **options: object) -> None:
    with Client(url, sleep=lambda _: None, **{"timeout": 10, **options}) as client:
        getattr(client, call)(*([] if call in ("model", "report") else [b"image"]))


async def ask_async(url: str, call: str, **options: object) -> None:
    async def no_sleep(_: float) -> None: ...

    async with AsyncClient(url, sleep=no_sleep, **{"timeout": 10, **options}) as client:
        await getattr(client, call)(*([] if call in ("model", "report") else [b"image"]))


@pytest.mark.parametrize("name", ANSWERS)
async def test_every_invalid_answer_is_a_client_error(name: str) -> None:
    with Hostile(lambda: [ANSWERS[name]]) as server:
        for call in ("predict", "report", "explain"):
            with pytest.raises(ClientError) as caught:
                ask(server.url, call)
            assert str(caught.value).isprintable() and str(caught.value)
        with pytest.raises(type(caught.value)):
            await ask_async(server.url, "explain")


@pytest.mark.parametrize("name", EXPLANATIONS)
async def test_an_invalid_explanation_is_an_invalid_answer(name: str) -> None:
    with Hostile(lambda: [EXPLANATIONS[name]]) as server:
        with pytest.raises(InvalidAnswerError):
            ask(server.url, "explain")
        with pytest.raises(InvalidAnswerError):
            await ask_async(server.url, "explain")


def test_an_invalid_answer_says_what_is_wrong() -> None:
    wrong = answer(json.dumps(good() | {"predictions": [{"label": "\n"}]}).encode(), JSON)
    words = r"no PredictResponse: predictions\.0\.class_id: Field required"
    with Hostile(lambda: [wrong]) as server, pytest.raises(InvalidAnswerError, match=words):
        ask(server.url, "predict")


def test_a_problem_is_one_line_whatever_it_says() -> None:
    problem = {"code": "x", "detail": "\x1b[2J\n" * 1000, "instance": "i"}
    content = answer(json.dumps(problem).encode(), PROBLEM, status="422 X")
    with Hostile(lambda: [content]) as server, pytest.raises(ProblemError) as caught:
        ask(server.url, "predict")
    assert caught.value.detail == problem["detail"]
    assert str(caught.value).startswith("422 x: \\x1b[2J\\n")
    assert len(str(caught.value)) <= 500


SLOW: dict[str, Callable[[], Iterable[bytes]]] = {
    "headers": lambda: slowly(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 10_000),
    "a body": lambda: slowly(answer(b"{}", "Content-Length: 100000")),
    "informational answers without an end": endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "chunks without an end": endless(answer(b"", "Transfer-Encoding: chunked"), b"1;" + b"x" * 60_000 + b"\r\na\r\n"),
}


def slowly(content: bytes) -> Iterator[bytes]:
    for index in range(len(content)):
        yield content[index : index + 1]
        time.sleep(0.01)


@pytest.mark.parametrize("name", SLOW)
async def test_an_endless_answer_is_abandoned_at_the_deadline(name: str) -> None:
    with Hostile(SLOW[name]) as server:
        with pytest.raises(AnswerTimeoutError):
            ask(server.url, "predict", deadline=0.3)
        with pytest.raises(AnswerTimeoutError):
            await ask_async(server.url, "predict", deadline=0.3)


async def test_a_server_that_reads_too_slowly_is_abandoned_at_the_deadline() -> None:
    large = bytes(64 * MEBIBYTE)  # more than the sockets' buffers take
    with Hostile(list, reads=False) as server:
        with Client(server.url, deadline=0.3) as client, pytest.raises(AnswerTimeoutError):
            client.predict(large)
        async with AsyncClient(server.url, deadline=0.3) as async_client:
            with pytest.raises(AnswerTimeoutError):
                await async_client.predict(large)


def test_a_reused_connection_has_a_deadline() -> None:
    whole = answer(json.dumps(good()).encode()).replace(b"Connection: close\r\n", b"")
    answers = itertools.chain([whole, None], slowly(whole))
    with Hostile(lambda: answers) as server, Client(server.url, deadline=1) as client:
        assert client.predict(b"image").views == 1
        with pytest.raises(AnswerTimeoutError):
            client.predict(b"image")
        assert len(server.connections) == 1


async def test_a_deadline_is_as_long_as_the_timeout_at_least() -> None:
    for seconds, timeout, expected in ((None, 1, 60), (None, 90, 90), (5, 90, 5)):
        async with AsyncClient("http://127.0.0.1", timeout=timeout, deadline=seconds) as client:
            assert client._deadline_seconds == expected


async def test_an_answer_that_is_too_large_is_not_read_on() -> None:
    for head in (answer(b"", f"Content-Length: {1 << 40}"), answer(b"", "X: Transfer")):
        with Hostile(endless(head, ZEROS)) as server:
            for limit in (1000, 4 * MEBIBYTE):
                with pytest.raises(InvalidAnswerError, match=f"more than {limit} bytes"):
                    ask(server.url, "predict", max_answer_bytes=limit)
                with pytest.raises(InvalidAnswerError, match=f"more than {limit} bytes"):
                    await ask_async(server.url, "predict", max_answer_bytes=limit)


MEMORY = """
import asyncio, os, re, sys
from app.client import AsyncClient, Client, ClientError

def peak():  # not getrusage's, which knows the process that started this one, too
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024

async def ask(url):
    async with AsyncClient(url, retries=0) as client:
        await getattr(client, call)(*arguments)

def growth(url):
    before = peak()
    for _ in range(2):
        for client in ("sync", "async"):
            try:
                if client == "async":
                    asyncio.run(ask(url))
                else:
                    with Client(url, retries=0) as client:
                        getattr(client, call)(*arguments)
            except ClientError as error:
                str(error), repr(error)
            else:
                return "no error"
    return peak() - before

call, arguments, urls = sys.argv[1], eval(sys.argv[2]), sys.argv[3:]
asyncio.run(asyncio.sleep(0))
for url in urls:
    if not (child := os.fork()):  # a process each, which need not import all again
        print(growth(url), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, url
"""
MANY = 3 * MEBIBYTE


@cache
def zeros_that_unpack() -> bytes:
    return gzip.compress(bytes(200 * MEBIBYTE))


BOMBS: dict[str, Callable[[], Iterable[bytes]]] = {
    "a body without an end": endless(answer(b"", "X: Transfer"), ZEROS),
    "gzip in gzip": lambda: [answer(nested_gzip(3), "Content-Encoding: gzip, gzip, gzip")],
    "brotli": lambda: [answer(b"\x00" * 1000, "Content-Encoding: br")],
    "a charset that unpacks": lambda: [
        answer(zeros_that_unpack(), "Content-Type: text/plain; charset=zip", status="500 X")
    ],
    "results that are none": lambda: [answer(b'{"results":[' + b"{}," * (MANY // 3) + b"{}]}", JSON)],
    "few results that are none": lambda: [answer(b'{"results":[' + b"{}," * 9_000 + b"{}]}", JSON)],
    "classes that are none": lambda: [answer(b'{"per_class":[' + b"{}," * 12_000 + b"{}]}", JSON)],
    "a matrix of a thousand classes": lambda: [
        answer(b'{"confusion_matrix":[' + b",".join([b"[" + b"0," * 999 + b"0]"] * 1000) + b"]}", JSON)
    ],
    "empty lists": lambda: [answer(b'{"model":[' + b"[]," * (MANY // 3) + b"[]]}", JSON)],
    "unknown fields": lambda: [answer(b"{" + b",".join(b'"%d":1' % n for n in range(19_000)) + b"}", JSON)],
    "a problem of empty lists": lambda: [
        answer(b'{"code":[' + b"[]," * (MANY // 3) + b"[]]}", PROBLEM, status="422 X")
    ],
    "a long detail": lambda: [answer(b'{"code":"x","detail":"' + b"\\n" * MANY + b'"}', PROBLEM, status="422 X")],
}


@cache
def growths(call: str) -> dict[str, str]:
    """By how many MiB each answer makes a process grow that asks for it with this method."""
    with ExitStack() as running:
        servers = [running.enter_context(Hostile(bomb, reads=call == "report")) for bomb in BOMBS.values()]
        arguments = {"predict_batch": "[[b'image']]", "report": "[]"}[call]
        command = [sys.executable, "-c", MEMORY, call, arguments, *(server.url for server in servers)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return dict(zip(BOMBS, done.stdout.split("\n"), strict=False))


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("call", [pytest.param("predict_batch", marks=pytest.mark.slow), "report"])
def test_no_answer_fills_the_memory(name: str, call: str) -> None:
    assert int(growths(call)[name]) < 100  # MiB
