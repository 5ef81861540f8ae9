"""The process's log, on standard error, written by a thread of its own: one JSON object a line, or text for people.

The reader of standard error may stop, and a disk may be full or slow. Logging never waits for them. Lines wait in a
queue of QUEUE_BYTES. When it is full, lines are dropped and counted; a later line in the log gives their number.
"""

import asyncio
import json
import logging
import os
import sys
import threading
import time
import warnings
from collections import deque
from types import TracebackType
from typing import Any

from ..settings import LogFormat

QUEUE_BYTES = 1 << 20  # some 3,000 lines
PAUSE_SECONDS = 0.01  # between two writes: lines that come together are written together
FLUSH_SECONDS = 2.0  # for the queued lines when the process ends
STANDARD_ERROR = 2


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Local time, level, message and fields on one line, for a terminal. Texts of clients cannot control it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        addresses = fields.pop("addresses", None)
        message = record.getMessage() + (f": open {' or '.join(addresses)}" if addresses else "")
        values = (f"{name}={_shown(value)}" for name, value in fields.items() if value not in (None, ""))
        when = time.strftime("%H:%M:%S", time.localtime(record.created))
        shown = "".join(character if character.isprintable() else "?" for character in message)
        return "  ".join([when, record.levelname.lower(), shown, *values])


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the record says beside its message, with the kind and the place of an error.

    The error's values could be a client's data, so they stay out of the log.
    """
    fields = dict(getattr(record, "fields", {}))
    if record.exc_info:
        kind, _, trace = record.exc_info
        fields["error"] = getattr(kind, "__name__", "")
        while trace is not None:
            fields["at"] = f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}"
            trace = trace.tb_next
    return fields


def _shown(value: object) -> str:
    """As JSON, without quotes where they are not needed."""
    if isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value and '"' not in value:
        return value
    return json.dumps(value)


class QueuedHandler(logging.Handler):
    """Writes lines to a file descriptor from a thread of its own. `emit` never waits for the descriptor."""

    def __init__(self, descriptor: int = STANDARD_ERROR) -> None:
        super().__init__()
        self.dropped = 0  # lines since the start
        self._descriptor = descriptor
        self._changed = threading.Condition()  # its lock is reentrant: a signal handler may log, too
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._sleeping = False
        self._closed = False
        self._broken_line = False
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = (self.format(record) + "\n").encode(errors="backslashreplace")
        except Exception:  # the message and its arguments do not fit: logging's own report would wait for stderr
            line = b""
        with self._changed:
            if not line or self._queued_bytes + len(line) > QUEUE_BYTES:
                self.dropped += 1
                return
            self._queue.append(line)
            self._queued_bytes += len(line)
            if self._sleeping:
                self._changed.notify()

    def close(self) -> None:
        """Write the queued lines, for at most FLUSH_SECONDS. logging calls this when the process ends."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(FLUSH_SECONDS)
        super().close()

    def _write_all(self) -> None:
        reported = 0
        while lines := self._take():
            if self._write(lines):
                with self._changed:
                    dropped, reported = self.dropped - reported, self.dropped
                if dropped:
                    self._write([self._line_about(dropped)])
            else:
                with self._changed:
                    self.dropped += len(lines)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, PAUSE_SECONDS)

    def _take(self) -> list[bytes]:
        """Wait for lines and return all of them; an empty list when the handler is closed and the queue is empty."""
        with self._changed:
            self._sleeping = True
            self._changed.wait_for(lambda: self._queue or self._closed)
            self._sleeping = False
            lines = list(self._queue)
            self._queue.clear()
            self._queued_bytes = 0
            return lines

    def _write(self, lines: list[bytes]) -> bool:
        """Whether all of them were written. The descriptor may be closed, its reader gone, or its disk full."""
        rest = memoryview((b"\n" if self._broken_line else b"") + b"".join(lines))
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
                self._broken_line = bool(rest)
        except OSError:
            return False
        return True

    def _line_about(self, dropped: int) -> bytes:
        values = {"name": "app", "levelname": "WARNING", "msg": "log lines were dropped", "fields": {"lines": dropped}}
        return (self.format(logging.makeLogRecord(values)) + "\n").encode()


def configure_logging(level: str, style: LogFormat = "json") -> None:
    """Write logs, warnings and uncaught errors in this style. Our access log replaces uvicorn's."""
    handler = QueuedHandler()
    handler.setFormatter(formatter(style))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("PIL").setLevel(logging.INFO)  # at debug level Pillow quotes images
    warnings.showwarning = _log_warning
    threading.excepthook = _log_threads_error
    sys.unraisablehook = _log_unraisable_error


def formatter(style: LogFormat) -> logging.Formatter:
    """The formatter of a style. "auto" is text if standard error is a terminal, else JSON."""
    text = style == "text" or (style == "auto" and os.isatty(STANDARD_ERROR))
    return TextFormatter() if text else JsonFormatter()


def dropped_lines() -> int:
    """Lines that the process's log has dropped."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, QueuedHandler))


def _log_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    logging.getLogger("app").warning("%s: %s", category.__name__, message)


def _log_threads_error(error: threading.ExceptHookArgs) -> None:
    _log_error("a thread met an error", error.exc_type, error.exc_value, error.exc_traceback)


def _log_unraisable_error(error: "sys.UnraisableHookArgs") -> None:
    _log_error("an error could not be raised", error.exc_type, error.exc_value, error.exc_traceback)


def _log_error(
    message: str, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    logging.getLogger("app").error(message, exc_info=(kind, error or kind(), trace))


def log_stray_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's exception handler. asyncio's own would log paths of this machine."""
    message = context["message"].partition("\n")[0]
    logging.getLogger("app").error(message, exc_info=context.get("exception"))
