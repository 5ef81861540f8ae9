import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest

from app.process import logging as logs
from app.process.logging import (
    QUEUE_BYTES,
    JsonFormatter,
    QueuedHandler,
    TextFormatter,
    configure_logging,
    formatter,
    log_stray_error,
)
from app.settings import LogFormat
from tests.app.server import serve


def test_a_log_line_is_one_json_object() -> None:
    record = logging.LogRecord("app", logging.INFO, "", 0, "two\nlines %s", ("é",), None)
    record.fields = {"status": 200}
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["message"], line["level"], line["status"]) == ("two\nlines é", "info", 200)


def test_a_logged_error_shows_its_place_but_no_value_or_path() -> None:
    try:
        raise ValueError("secret")
    except ValueError:
        record = logging.LogRecord("app", logging.ERROR, "", 0, "bad", (), sys.exc_info())
    text = JsonFormatter().format(record)
    assert json.loads(text)["error"] == "ValueError"
    assert json.loads(text)["at"].startswith(__name__)
    assert "secret" not in text
    assert "/" not in text


def test_logging_is_configured_once_for_the_process(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # so that they are in the end as they were
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    try:
        configure_logging("info")
        logging.getLogger("anything").info("hello")
        logging.getLogger("anything").debug("not this")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = logs._log_warning  # which pytest has replaced
            warnings.warn("odd", RuntimeWarning, stacklevel=1)
        threading.excepthook(threading.ExceptHookArgs((ValueError, ValueError("secret"), None, None)))
        (handler,) = root.handlers
        handler.close()
        hello, odd, error = (json.loads(line) for line in capfd.readouterr().err.splitlines())
        assert hello["message"] == "hello"
        assert odd["message"] == "RuntimeWarning: odd"
        assert (error["message"], error["error"]) == ("a thread met an error", "ValueError")
        assert "secret" not in str(error)
    finally:
        root.handlers[:], root.level = before, level
        logging.getLogger("uvicorn.access").disabled = False


async def test_a_stray_error_is_logged_without_files(caplog: pytest.LogCaptureFixture) -> None:
    async def stray() -> None:
        raise ValueError("secret")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_stray_error)
    task = asyncio.create_task(stray())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
    (record,) = caplog.records
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "Task exception was never retrieved"
    assert line["error"] == "ValueError"
    assert "secret" not in str(line) and "/" not in str(line)


@pytest.fixture
def pipe() -> Iterator[tuple[int, QueuedHandler]]:
    """The end of a pipe from which lines can be read, and a handler that writes to the other end."""
    reader, writer = os.pipe()
    handler = QueuedHandler(writer)
    handler.setFormatter(JsonFormatter())
    yield reader, handler
    for end in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(end)  # a thread that still writes gets an error, and ends
    handler.close()


def log(handler: QueuedHandler, message: object, *arguments: object) -> None:
    handler.handle(logging.LogRecord("app", logging.INFO, "", 0, message, arguments, None))


def read(reader: int, handler: QueuedHandler) -> list[dict]:
    """All lines until the handler is closed."""
    closing = threading.Thread(target=lambda: (handler.close(), os.close(handler._descriptor)))
    closing.start()
    with open(reader, "rb", closefd=False) as lines:
        found = [json.loads(line) for line in lines]
    closing.join()
    return found


def test_all_log_lines_are_written_in_order(pipe: tuple[int, QueuedHandler]) -> None:
    reader, handler = pipe
    for number in range(500):
        log(handler, "%s", number)
    assert [line["message"] for line in read(reader, handler)] == [str(number) for number in range(500)]
    assert handler.dropped == 0


def test_logging_never_waits_for_the_reader_and_counts_dropped_lines(pipe: tuple[int, QueuedHandler]) -> None:
    reader, handler = pipe
    sent = 0
    while handler.dropped < 100:  # ends only if logging does not wait
        log(handler, "x" * 1000)
        sent += 1
    assert sent > QUEUE_BYTES / 1200
    lines = read(reader, handler)
    said = sum(line["lines"] for line in lines if line["message"] == "log lines were dropped")
    assert said == handler.dropped == 100
    assert len([line for line in lines if line["message"] == "x" * 1000]) == sent - 100


@pytest.mark.parametrize("descriptor", ["/dev/full", None, -1], ids=["full disk", "no reader", "closed"])
def test_lines_that_cannot_be_written_are_dropped(descriptor: str | int | None) -> None:
    if isinstance(descriptor, str):
        opened = os.open(descriptor, os.O_WRONLY)
    elif descriptor is None:
        reader, opened = os.pipe()
        os.close(reader)
    else:
        opened = os.open(os.devnull, os.O_WRONLY)
        os.close(opened)
    handler = QueuedHandler(opened)
    handler.setFormatter(JsonFormatter())
    for _ in range(10):
        log(handler, "x")
    handler.close()
    assert handler.dropped == 10
    with contextlib.suppress(OSError):
        os.close(opened)


def test_a_malformed_log_record_is_dropped(pipe: tuple[int, QueuedHandler]) -> None:
    reader, handler = pipe
    log(handler, "%d", "no number")
    log(handler, "lone surrogate \ud800")
    messages = [line["message"] for line in read(reader, handler)]
    assert len(messages) == 2 and messages[1] == "log lines were dropped" and handler.dropped == 1


def test_closing_the_log_waits_for_the_reader_for_a_limited_time(
    pipe: tuple[int, QueuedHandler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 0.1)
    _, handler = pipe
    for _ in range(500):
        log(handler, "x" * 1000)
    handler.close()


def test_a_server_whose_log_nobody_reads_answers_and_ends() -> None:
    with serve() as (process, client):
        assert process.stderr is not None
        size = fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)  # bytes; by default 65,536
        for _ in range(2 * size // 64):  # a line is longer than its request's identifier
            assert client.get("/nowhere", headers={"X-Request-ID": "x" * 64}).status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize("reader", ["gone", "full"])
def test_a_server_whose_log_cannot_be_written_answers_and_ends(reader: str) -> None:
    with (
        open("/dev/full", "wb") as full,
        serve(stderr=subprocess.PIPE if reader == "gone" else full) as (
            process,
            client,
        ),
    ):
        if process.stderr is not None:
            process.stderr.close()
        for _ in range(10):
            assert client.get("/model").status_code == 200
        while "log_lines_dropped_total 0.0" in client.get("/metrics").text:
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_the_last_lines_of_a_server_are_not_lost() -> None:
    with serve() as (process, client):
        for _ in range(50):
            client.get("/model")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        messages = [json.loads(line)["message"] for line in process.stderr]
    assert messages.count("request") == 50
    assert any(message.startswith("Finished server process") for message in messages)


def test_text_names_the_address_to_open_and_its_fields() -> None:
    fields = {"model": "1.5.0", "authentication": "API keys", "addresses": ["http://127.0.0.1:8000"], "none": None}
    record = logging.makeLogRecord({"levelname": "INFO", "msg": "ready", "fields": fields})
    when, _, rest = TextFormatter().format(record).partition("  ")
    assert len(when) == len("12:34:56")
    assert rest == 'info  ready: open http://127.0.0.1:8000  model=1.5.0  authentication="API keys"'


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\x9b31m", "\u202e", 'say "hi"'])
def test_text_of_a_client_cannot_control_a_terminal(text: str) -> None:
    record = logging.makeLogRecord({"levelname": "INFO", "msg": text, "fields": {"path": text}})
    assert TextFormatter().format(record).isprintable()


@pytest.mark.parametrize(
    ("style", "terminal", "kind"),
    [
        ("auto", True, TextFormatter),
        ("auto", False, JsonFormatter),
        ("json", True, JsonFormatter),
        ("text", False, TextFormatter),
    ],
)
def test_a_terminal_gets_text(style: LogFormat, terminal: bool, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: terminal)
    assert type(formatter(style)) is kind
