"""uvicorn's connection with limits on headers and on idle time."""

import asyncio
import os
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..api.problems import problem_response
from ..errors import MalformedRequest

MAX_HEADER_BYTES = 64 * 1024  # of the address and all headers: twice what nginx takes
TOO_LARGE = f"the address and the headers are larger than the {MAX_HEADER_BYTES:,} bytes that are accepted"
HEADER_COST = 32  # bytes that an empty header counts for, as in HTTP/2 (RFC 9113, 6.5.2)


class HeadersTooLarge(Exception):
    """Ends the parser."""


class Connection(HttpToolsProtocol):
    """Breaks off when a whole `patience_seconds` pass without a new request, or with one that does not end.

    uvicorn has no limit for a client that connects and says nothing, sends headers without end, dribbles a body that
    was refused, or does not take its answer. `patience_seconds` must be more than a request may take.

    httptools has no limit for headers, which no middleware sees before they are whole. Those that are too large, and
    what is no HTTP, are answered 400 by a problem document whose type begins with `prefix`; what still comes then is
    read and forgotten.
    """

    def __init__(self, *args: Any, patience_seconds: float, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience_seconds = patience_seconds
        self._prefix = prefix
        self._seen: RequestResponseCycle | None = None
        self._check: asyncio.TimerHandle | None = None
        self._in_headers = False
        self._header_bytes = 0
        self._unended_bytes = 0
        self._refused = False

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        begun = self._in_headers
        super().data_received(data)
        # The parser keeps a header that has not ended, and says nothing of it.
        if begun and self._in_headers and not self._refused:
            self._unended_bytes += len(data)
            if self._unended_bytes > MAX_HEADER_BYTES:
                self._refuse(TOO_LARGE)

    def on_message_begin(self) -> None:
        self._in_headers, self._header_bytes, self._unended_bytes = True, 0, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + HEADER_COST)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise HeadersTooLarge  # the parser ends, and uvicorn calls send_400_response

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        self._refuse(TOO_LARGE if self._header_bytes > MAX_HEADER_BYTES else "this is no HTTP that can be parsed")

    def _refuse(self, detail: str) -> None:
        self._refused = True
        response = problem_response(MalformedRequest(detail), os.urandom(16).hex(), self._prefix)
        lines = [b"HTTP/1.1 400 Bad Request", *(b": ".join(header) for header in response.raw_headers)]
        self.transport.write(b"\r\n".join([*lines, b"connection: close", b"", bytes(response.body)]))
        self.transport.write_eof()  # not close(), whose reset a client that still sends may see instead of the answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._check_later()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._check:
            self._check.cancel()

    def _check_later(self) -> None:
        self._seen = self.cycle
        self._check = self.loop.call_later(self._patience_seconds, self._break_off_if_same)

    def _break_off_if_same(self) -> None:
        if self.cycle is self._seen:
            self.transport.abort()
        else:
            self._check_later()
