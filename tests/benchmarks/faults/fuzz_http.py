"""Fuzz a server with random HTTP: framing, headers, pipelining and forms, sent in random pieces.

    python -m tests.benchmarks.faults.fuzz_http --seed 1 --seconds 60

Connection n of a run depends only on the seed and n, so `--only n` repeats it. The run ends with status 1 and names the
connection if an answer has a status of 500 or more, a connection stays open for more than five deadlines, the process
ends or logs an error, or its memory grows by more than GROWTH_MB.
"""

import argparse
import contextlib
import itertools
import json
import random
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.app.server import serve
from tests.benchmarks.serving.processes import resident_mb
from tests.conftest import DATA

CAT = (DATA / "cat.png").read_bytes()
GROWTH_MB = 150.0
THREADS = 16  # connections at once
PATHS = [
    "/livez",
    "/readyz",
    "/model",
    "/model/",
    "/predict",
    "/predict?top_k=3",
    "/predict/batch",
    "/predict/batch?partial=true",
    "/explain",
    "/explain?class_id=3",
    "/v2/models/cifar10/infer",
    "/v2/models",
    "/v2/repository/index",
    "/metrics",
    "/metrics/report",
    "/assets/web/main.js",
    "/assets/web/../main.js",
    "/nowhere",
    "/%00",
    "/%ff%fe",
    "//x",
    "*",
    "http://x/livez",
    "",
]
UPLOADS = [path for path in PATHS if path.startswith(("/predict", "/explain", "/v2/models/"))]
METHODS = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "PRI", "get", "G\0T", ""]
VERSIONS = ["HTTP/1.1"] * 60 + ["HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/11", "http/1.1", "", "RTSP/1.0"]
HEADERS = [
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: Upgrade\r\nUpgrade: websocket",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    b"Expect: 100-continue",
    b"Expect: nonsense",
    b"Host: y",
    b"Host: a b",
    b"Content-Encoding: gzip",
    b"Content-Encoding: x",
    b"Content-Type: application/json",
    b"Content-Type: multipart/form-data",
    b"Content-Type: multipart/form-data; boundary=b; charset=undefined",
    b"Content-Type: \xff",
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Content-Length: +3",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding:\tchunked ",
    b"Inference-Header-Content-Length: 3",
    b"Inference-Header-Content-Length: -3",
    b"X-Request-ID: \xe9",
    b"X-Forwarded-For: 1.2.3.4",
    b"Authorization: Bearer \xff",
    b"Range: bytes=0-1,3-",
    b"If-None-Match: *",
    b"Accept: \xff/\xff;q=\xff",
    b"Cookie: " + b"x" * 3000,
    b" folded",
    b"no colon",
    b": no name",
    b"X" * 300 + b": y",
    b"X: \0",
    b"X:" + b" " * 500,
]
NOISE = [b"\r\n", b"\n", b"\r", b"\0", b"\xff", b" ", b"\r\n\r\n", b"--b--", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01"]


def noise(rng: random.Random) -> bytes:
    return b"".join(rng.choice(NOISE) for _ in range(rng.randrange(1, 20)))


def form(rng: random.Random) -> bytes:
    """A multipart body with the boundary b, valid or with faults."""
    parts = []
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 40])):
        name = rng.choice([b"file", b"files", b"x", b"\xff", b"", b'a"b', b"n" * 500])
        disposition = b'Content-Disposition: form-data; name="' + name + b'"'
        disposition += rng.choice([b'; filename="cat.png"', b"", b'; filename=""', b"; filename*=utf-8''%ff", b";;;="])
        lines = [disposition] * rng.choice([1, 1, 1, 1, 0, 2])
        lines += [rng.choice(HEADERS)] * rng.choice([0, 0, 0, 1, 9])
        content = rng.choice([CAT, CAT, CAT, b"", b"x", CAT[: rng.randrange(len(CAT))], noise(rng)])
        parts.append(b"--b\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + content + b"\r\n")
    end = rng.choice([b"--b--\r\n", b"--b--\r\n", b"--b--", b"", b"--b\r\n", b"--b--" + noise(rng)])
    return b"".join(parts) + end


def message(rng: random.Random) -> bytes:
    """A JSON message of the Open Inference Protocol, valid or with faults."""
    tensor = {
        "name": rng.choice(["images", "x"]),
        "shape": rng.choice([[1], [1, 32, 32, 3], [0], [-1], [2**70], []]),
        "datatype": rng.choice(["BYTES", "UINT8", "FP32", 1]),
        "data": rng.choice([["x"], [1], [], [[1]], "x", None]),
        "parameters": rng.choice([{}, {"binary_data_size": rng.choice([0, 3, -1, 10**30, "x"])}, []]),
    }
    document = {"inputs": rng.choice([[tensor], [], [tensor] * 2, {}]), "id": rng.choice(["a", 1, None, "\ud800"])}
    text = json.dumps(document).encode()
    return rng.choice([text, text, text[: rng.randrange(len(text))], b"[" * 5000, b"\xff", text + CAT])


def body(rng: random.Random) -> bytes:
    kinds: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: CAT,
        lambda: CAT[: rng.randrange(len(CAT))],
        lambda: form(rng),
        lambda: form(rng),
        lambda: message(rng),
        lambda: noise(rng),
        lambda: rng.randbytes(rng.choice([1, 100, 10_000, 200_000])),
    ]
    return rng.choice(kinds)()


def chunked(rng: random.Random, content: bytes) -> bytes:
    pieces = []
    while content:
        size = rng.choice([1, 7, 1000, len(content)])
        piece, content = content[:size], content[size:]
        length = rng.choice([b"%x", b"%X", b"0%x", b"00000000%x"]) % len(piece)
        if rng.random() < 0.003:
            length = rng.choice([b"", b"-1", b"0x1", b"g", b" 1", b"1 ", b"f" * 17, b"%x" % (len(piece) + 1)])
        length += rng.choice([b""] * 30 + [b";a", b';a="b c"', b";" + b"x" * 300, b" ;a=b", b";\0"])
        pieces.append(
            length + rng.choice([b"\r\n"] * 300 + [b"\n"]) + piece + rng.choice([b"\r\n"] * 300 + [b"", b"x\r\n"])
        )
        if len(pieces) > 300:
            break
    trailers = rng.choice(
        [b""] * 60 + [b"X: y\r\n", b"Authorization: Bearer x\r\n" * 3, b"no colon\r\n", b"X: " + b"y" * 70_000]
    )
    return b"".join(pieces) + rng.choice([b"0\r\n"] * 80 + [b"", b"0", b"00;x\r\n"]) + trailers + b"\r\n"


def request(rng: random.Random) -> bytes:
    method = rng.choice(["GET"] * 5 + ["POST"] * 14 + [rng.choice(METHODS)])
    path = rng.choice(UPLOADS if method == "POST" and rng.random() < 0.9 else PATHS)
    line = f"{method} {path} {rng.choice(VERSIONS)}".encode()
    content = body(rng)
    headers = [b"Host: x"] * rng.choice([1] * 50 + [0, 2])
    if method == "POST" or rng.random() < 0.1:
        if content.find(b"--b") >= 0 and rng.random() < 0.95:
            headers.append(b"Content-Type: multipart/form-data; boundary=b")
        if rng.random() < 0.4:
            headers.append(b"Transfer-Encoding: chunked")
            content = chunked(rng, content)
        else:
            length = len(content) + rng.choice([0] * 40 + [1, -1, 100_000])
            headers.append(b"Content-Length: %d" % max(0, length))
    else:
        content = b""
    headers += rng.sample(HEADERS, rng.choice([0] * 12 + [1, 1, 2, 5]))
    if rng.random() < 0.3:
        rng.shuffle(headers)
    end = rng.choice([b"\r\n"] * 40 + [b"\n", b"\r"])
    whole = rng.choice([b""] * 9 + [b"\r\n"]) + line + end + end.join(headers) + end + end + content
    if rng.random() < 0.04 and whole:  # remove, repeat or insert bytes
        at = rng.randrange(len(whole))
        whole = whole[:at] + rng.choice([b"", noise(rng), whole[at : at + 50]]) + whole[at + rng.randrange(3) :]
    return whole


def connection(seed: int, number: int) -> list[bytes]:
    """The pieces that one connection sends."""
    rng = random.Random(f"{seed} {number}")
    sent = b"".join(request(rng) for _ in range(rng.choice([1, 1, 1, 2, 3, 8])))
    if rng.random() < 0.5:
        return [sent]
    size = rng.choice([1000, 5000, max(1, len(sent) // 7), max(1, len(sent) // 50)])
    return [sent[at : at + size] for at in range(0, len(sent), size)]


def exchange(address: tuple[str, int], seed: int, number: int, bound_seconds: float) -> list[int]:
    """The statuses of the answers. Raises TimeoutError if the server does not close the connection in time."""
    pieces = connection(seed, number)
    # Some clients disconnect at once, most when no more data arrives, and some wait until the server disconnects.
    patience = random.Random(f"{number} {seed}").choice([0.0, *[0.3] * 12, bound_seconds])
    answers = b""
    end = time.monotonic() + bound_seconds
    with socket.create_connection(address, timeout=bound_seconds) as client, contextlib.suppress(ConnectionError):
        for piece in pieces:
            client.sendall(piece)
        while patience:
            client.settimeout(max(0.001, min(end - time.monotonic(), patience)))
            try:
                found = client.recv(65536)
            except TimeoutError:
                if patience == bound_seconds:
                    raise
                break
            if not found:
                break
            answers += found
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--deadline", type=float, default=20, help="of the service; raise it on a busy machine")
    parser.add_argument("--only", type=int, metavar="N", help="only this connection")
    options = parser.parse_args()
    with tempfile.TemporaryFile() as log:
        environment = {"DEADLINE_SECONDS": options.deadline, "LOG_LEVEL": "warning"}
        with serve(stderr=log, **environment) as (process, client):
            address = client.base_url.host, client.base_url.port
            failures, statuses, count = fuzz(options, address, process.pid)
            if process.poll() is not None:
                failures.append(f"the process ended with {process.returncode}")
        log.seek(0)
        failures += [line for line in log.read().decode(errors="replace").splitlines() if '"level": "error"' in line]
    print(f"seed {options.seed}, {count} connections: {dict(sorted(statuses.items()))}")
    for failure in failures:
        print(failure)
    sys.exit(bool(failures))


def fuzz(options: argparse.Namespace, address: tuple[str, int], pid: int) -> tuple[list[str], Counter[int], int]:
    """The failures, the counts of answers by status, and the number of connections."""
    failures: list[str] = []
    statuses: Counter[int] = Counter()
    end = time.monotonic() + options.seconds
    numbers = itertools.count() if options.only is None else iter((options.only,))
    done = 0

    def send_on() -> None:
        nonlocal done
        while time.monotonic() < end and not failures and (number := next(numbers, None)) is not None:
            try:
                found = exchange(address, options.seed, number, 5 * options.deadline + 10)
            except OSError as error:
                failures.append(f"connection {number}: {error!r}")
                return
            statuses.update(found)
            done += 1
            if any(status >= 500 for status in found):
                failures.append(f"connection {number}: {found}")

    with ThreadPoolExecutor(THREADS) as threads:
        sending = [threads.submit(send_on) for _ in range(THREADS)]
        warm = None
        while not all(future.done() for future in sending):
            time.sleep(1)
            now = resident_mb(pid)
            warm = now if warm is None and done > 500 else warm
            if warm is not None and now > warm + GROWTH_MB:
                failures.append(f"after {done} connections: {warm:.0f} MB have become {now:.0f}")
        for future in sending:
            future.result()
    return failures, statuses, done


if __name__ == "__main__":
    main()
