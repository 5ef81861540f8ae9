"""OTLP over HTTP: what the collector's variables must hold, and how much of its answers is read.

    check("traces")              # TelemetryError
    exporter(session=session())

The SDK takes addresses and numbers with which every export would fail. It reads answers whole, and waits anew for each
piece of them, so another server behind the address, or a broken collector, could fill the memory or stop the exports.
"""

import io
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from requests import PreparedRequest, Response, Session
from requests.adapters import HTTPAdapter

from . import TelemetryError

MOST_ANSWER_BYTES = 1 << 16  # OTLP's answers are empty, or say in a sentence what was refused
MOST_ANSWER_SECONDS = 10.0
YEAR = 365 * 86_400.0
OTLP = "OTEL_EXPORTER_OTLP_"
SCHEMES = ("http", "https")
FILES = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
MILLISECONDS = {
    "traces": ("OTEL_BSP_SCHEDULE_DELAY",),
    "metrics": ("OTEL_METRIC_EXPORT_INTERVAL", "OTEL_METRIC_EXPORT_TIMEOUT"),
}


def check(signal: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raises TelemetryError, which shows no value: an address may hold a password."""
    given = {name: value for name, value in _variables(signal, environment) if value}
    for name, value in given.items():
        if name.endswith("ENDPOINT") and not _is_address(value):
            raise TelemetryError(f"{name}: it must be http:// or https:// and a host, such as http://localhost:4318")
        if name.endswith(FILES) and not Path(value).exists():
            raise TelemetryError(f"{name}: there is no such file")
        if name.endswith("TIMEOUT") and not _is_time(value, 1):
            raise TelemetryError(f"{name}: it must be seconds, more than 0 and at most a year")
    for name in MILLISECONDS[signal]:
        if not _is_time(environment.get(name, "1"), 1000):
            raise TelemetryError(f"{name}: it must be milliseconds, more than 0 and at most a year")


def session() -> Session:
    """For one exporter: it reads MOST_ANSWER_BYTES of an answer, for MOST_ANSWER_SECONDS."""
    made = Session()
    for scheme in SCHEMES:
        made.mount(f"{scheme}://", _Bounded())
    return made


class _Bounded(HTTPAdapter):
    def send(self, request: PreparedRequest, *given: Any, **options: Any) -> Response:
        response = super().send(request, *given, **{**options, "stream": True})
        until = time.monotonic() + MOST_ANSWER_SECONDS
        content = bytearray()
        try:
            while len(content) < MOST_ANSWER_BYTES and time.monotonic() < until:
                piece = response.raw.read1(MOST_ANSWER_BYTES - len(content), decode_content=True)
                if not piece:
                    break
                content += piece
        finally:
            response.raw.close()
        response.raw = io.BytesIO(content)
        return response


def _variables(signal: str, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What the exporter of a signal reads, by the name of the variable: its own, or else that of all signals."""
    for setting in ("ENDPOINT", "TIMEOUT", *FILES):
        own, common = f"{OTLP}{signal.upper()}_{setting}", f"{OTLP}{setting}"
        name = own if environment.get(own) else common
        yield name, environment.get(name, "")


def _is_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0 and value.split() == [value]
    except ValueError:  # of a port
        return False


def _is_time(value: str, units: int) -> bool:
    """Whether it is so many units of a second. What is no number the SDK replaces by its default, with a warning."""
    try:
        return 0 < float(value) / units <= YEAR
    except ValueError:
        return True
