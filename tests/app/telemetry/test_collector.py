"""Collectors that are wrong or hostile, and variables that lead to none."""

import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from app.telemetry import TelemetryError, collector
from app.telemetry.collector import MOST_ANSWER_BYTES, check, session

Answer = Callable[[socket.socket], None]


@pytest.fixture
def answering() -> Iterator[Callable[[Answer], str]]:
    """A function that starts a server of one connection, and returns its address."""
    servers, threads = [], []

    def start(answer: Answer) -> str:
        server = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                with suppress(OSError):  # it is not read any more
                    answer(connection)

        servers.append(server)
        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/v1/traces"

    yield start
    for thread in threads:
        thread.join()
    for server in servers:
        server.close()


def test_an_answer_is_given_as_it_came(answering: Callable[[Answer], str]) -> None:
    address = answering(lambda to: to.sendall(b"HTTP/1.1 400 Bad\r\nContent-Length: 4\r\n\r\nlong"))
    answer = session().post(address, b"x", timeout=10)
    assert (answer.status_code, answer.content) == (400, b"long")


def flood(to: socket.socket) -> None:
    to.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    while True:
        to.sendall(bytes(1 << 16))


def bomb(to: socket.socket) -> None:
    packed = zlib.compress(bytes(50_000_000))
    to.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed)


@pytest.mark.parametrize("answer", [flood, bomb])
def test_little_is_read_of_a_large_answer(answering: Callable[[Answer], str], answer: Answer) -> None:
    assert len(session().post(answering(answer), b"x", timeout=10).content) <= MOST_ANSWER_BYTES


def test_an_answer_without_an_end_is_not_waited_for(
    answering: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(to: socket.socket) -> None:
        to.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            to.sendall(b"x")
            time.sleep(0.01)

    monkeypatch.setattr(collector, "MOST_ANSWER_SECONDS", 0.05)
    exporter = OTLPSpanExporter(answering(drip), session=session())
    assert exporter.export([]).name == "SUCCESS"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        *(
            ("OTEL_EXPORTER_OTLP_ENDPOINT", value, "OTEL_EXPORTER_OTLP_ENDPOINT: it must be http:// or https://")
            for value in (
                "localhost:4318",
                "not a url",
                " http://x ",
                "ftp://x",
                "http://",
                "http://x:99999",
                "http://[::1",
            )
        ),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "x", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: it must be http://"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", "OTEL_EXPORTER_OTLP_TIMEOUT: it must be seconds, more than 0"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "nan", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: it must be seconds"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/none.pem", "OTEL_EXPORTER_OTLP_CERTIFICATE: there is no such file"),
        ("OTEL_BSP_SCHEDULE_DELAY", "1" * 20, "OTEL_BSP_SCHEDULE_DELAY: it must be milliseconds"),
    ],
)
def test_what_no_export_could_use_is_refused(variable: str, value: str, message: str) -> None:
    with pytest.raises(TelemetryError) as refused:
        check("traces", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", variable: value})
    assert str(refused.value).startswith(message)
    assert "[::1" not in str(refused.value)


def test_what_can_be_used_is_not_refused(tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.touch()
    check("metrics", {})
    check(
        "traces",
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://user:secret@[::1]:4318/otlp",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "of another signal",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificate),
            "OTEL_EXPORTER_OTLP_TIMEOUT": "ten",  # the SDK takes its default, and says so
            "OTEL_METRIC_EXPORT_INTERVAL": "inf",
            "OTEL_EXPORTER_OTLP_HEADERS": "a=b",
        },
    )
