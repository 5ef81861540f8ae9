"""uvicorn's connection with limits on headers, framing, bytes read ahead, idle time and the number of connections.

uvicorn parses everything that a client sends, and queues the requests. This connection parses one request, and the
next one after the answer was sent. httptools parses only heads; `framing` parses bodies, with limits for chunks.
"""

import asyncio
import os
import re
from collections.abc import Callable
from typing import Any, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..api.problems import problem_response
from ..api.request_context import client_address, context_of, network_of
from ..errors import MalformedRequest
from .connection_limit import ConnectionLimit
from .framing import Body, Chunks, FramingError, Sized
from .lone_connection import LoneConnection
from .turns import Turns

MAX_HEADER_BYTES = 64 * 1024  # for the address and all headers: twice nginx's limit
TOO_LARGE = f"the address and the headers are larger than the {MAX_HEADER_BYTES:,} bytes that are accepted"
NO_HTTP = "this is no HTTP that can be parsed"
HEADER_COST = 32  # bytes that an empty header counts for, as in HTTP/2 (RFC 9113, 6.5.2)

BODY_READ_BYTES = 64 * 1024  # at once
READ_BYTES = 16 * 1024  # at once, in a head; also the most that is kept unparsed behind a request under way
TINY_READ_BYTES = 1024  # at once, in bodies of tiny chunks: a fraction of a millisecond of the event loop
TINY_PIECE_BYTES = 256  # a shorter piece may be cut by the network, and does not tell how large the chunks are

END = b"\r\n\r\n"
CHECKED = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
# RFC 9110, 7.2: uri-host and an optional port; RFC 3986 allows a name to be empty.
HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-fvV:.]+\])(?::[0-9]*)?")


class Refused(Exception):
    """Ends the parsing of a head. The message is for the client."""


class Flow(FlowControl):
    """uvicorn's flow control; while `full`, `resume_reading` has no effect."""

    full = False

    def resume_reading(self) -> None:
        if not self.full:
            super().resume_reading()


class Reader(asyncio.BufferedProtocol):
    """Passes data from a transport to its connection, at most `bytes_wanted` at once.

    It is a separate class because uvloop passes an asyncio.Protocol up to 256 KiB at once, and ignores get_buffer.
    """

    def __init__(self, connection: "Connection", buffer: memoryview) -> None:
        self._connection = connection
        self._buffer = buffer
        self.connection_lost = connection.connection_lost  # type: ignore[method-assign]
        self.eof_received = connection.eof_received  # type: ignore[method-assign]
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._buffer[: self._connection.bytes_wanted]

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(bytes(self._buffer[:nbytes]))


class Connection(HttpToolsProtocol):
    """One client's connection. Further requests wait unparsed until the answer is sent.

    It is closed after `patience_seconds` in which no request begins. uvicorn has no limit for a client that
    sends nothing, sends a refused body slowly, or does not read its answer. `patience_seconds` must be longer than a
    request may take.

    A head that is malformed or too large is answered 400 by a problem document whose type begins with `prefix`, and
    `on_refused(instance, client's address)` is called. Later bytes are discarded. A malformed body ends its request
    with `RequestContext.fault`.

    `buffer` of BODY_READ_BYTES is shared by the connections of one event loop, `limit`, `turns` and `lone` by those of
    one server.
    """

    def __init__(
        self,
        *args: Any,
        patience_seconds: float,
        buffer: memoryview,
        limit: ConnectionLimit,
        turns: Turns,
        lone: LoneConnection,
        on_refused: Callable[[str, str], None],
        prefix: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._patience_seconds = patience_seconds
        self._buffer = buffer
        self._limit = limit
        self._turns = turns
        self._lone = lone
        self._on_refused = on_refused
        self._prefix = prefix
        self._seen: RequestResponseCycle | None = None
        self._check: asyncio.TimerHandle | None = None
        self._flow: Flow
        self._rest = b""  # bytes that are not parsed yet
        self._waits = False  # for its turn to parse a head
        self._refused = False
        # The head that is being read
        self._tail = b""  # its last bytes: the end may come in two pieces
        self._head_bytes = 0
        self._header_bytes = 0
        self._head_complete = False
        self._detail = NO_HTTP
        self._framing: dict[bytes, list[bytes]] = {}
        # The body that is being read
        self._body: Body | None = None
        self._tiny = False

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    # Called by asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = self._flow = Flow(transport)
        transport.set_protocol(Reader(self, self._buffer))
        self._check_later()
        self._limit.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._limit.remove(self)
        self._rest, self._body = b"", None
        if self._check:
            self._check.cancel()

    @property
    def bytes_wanted(self) -> int:
        """The most bytes to read at once, at least 1."""
        if self._body is not None:
            return TINY_READ_BYTES if self._tiny else BODY_READ_BYTES
        return max(1, READ_BYTES - len(self._rest))

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._rest = self._rest + data if self._rest else data
        self._read_on()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_on_soon()

    # One request after the other

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._limit.touch(self)
        if self._body is not None:
            self.transport.close()  # LingeringClose has waited long enough for the rest of the body
        self._read_on_soon()

    def _read_on_soon(self) -> None:
        if self._rest:
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._may_begin():
            self._read_on()

    def _take_turn(self) -> None:
        self._waits = False
        if self._rest and self._may_begin():
            self._read_on(turn=True)

    def _is_our_turn(self) -> bool:
        """Whether a head may be parsed now. If not, `_take_turn` is called when it is."""
        if not self._waits:
            self._waits = not self._turns.take(network_of(self.client[0]) if self.client else "", self._take_turn)
        return not self._waits

    def _may_begin(self) -> bool:
        return self.idle and not (self._refused or self.flow.write_paused or self.transport.is_closing())

    def _read_on(self, *, turn: bool = False) -> None:
        data, self._rest = self._rest, b""
        while data and not self._refused:
            if self._body is not None:
                data = self._read_body(self._body, data)
            elif self._may_begin() and (turn or self._is_our_turn()):
                turn = False
                data = self._read_head(data)
            else:
                self._rest = b"" if self.transport.is_closing() else data
                self._unset_keepalive_if_required()
                break
        self._flow.full = len(self._rest) >= READ_BYTES
        if self._flow.full:
            self.flow.pause_reading()
        elif self._body is None:
            self.flow.resume_reading()

    def _read_head(self, data: bytes) -> bytes:
        """Parse at most to the end of the head. Returns the bytes after it."""
        end = (self._tail + data).find(END)
        head = data if end < 0 else data[: end + len(END) - len(self._tail)]
        self._head_bytes += len(head)
        self._tail = (self._tail + head)[1 - len(END) :] if end < 0 else b""
        if self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(TOO_LARGE)
            return b""
        try:
            self.parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # ignored: it is an ordinary request (RFC 9110, 7.8)
        except httptools.HttpParserError:
            self._refuse(self._detail)
            return b""
        if self._head_complete:
            self._begin_body()
        return data[len(head) :]

    def _begin_body(self) -> None:
        self._head_complete, self._head_bytes = False, 0
        self._tiny = False
        if b"transfer-encoding" in self._framing:
            self._body = Chunks()
        elif length := self._framing.get(b"content-length"):
            self._body = Sized(int(length[0]))
        if self._body is None or self._body.complete:
            self._body = None
            super().on_message_complete()
        if b"transfer-encoding" in self._framing or b"content-length" in self._framing:
            self.parser = self._new_parser()  # the old one expects the body

    def _read_body(self, body: Body, data: bytes) -> bytes:
        """Pass the content in `data` to the application. Returns the bytes after the body."""
        try:
            content, rest = body.take(data)
        except FramingError as error:
            self._refuse_body(str(error))
            return b""
        if content:
            super().on_body(content)
        if body.complete:
            self._body = None
            super().on_message_complete()
            return rest
        if len(data) >= TINY_PIECE_BYTES:
            self._tiny = len(content) < len(data) // 2
        if self._tiny and content and not self.cycle.response_complete:
            self.flow.pause_reading()  # until the application has read it, so that other connections get their turn
        return rest

    # Called by httptools while it parses a head

    def on_message_begin(self) -> None:
        self._header_bytes, self._head_complete, self._detail, self._framing = 0, False, NO_HTTP, {}
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + HEADER_COST)
        name = name.lower()
        if name in CHECKED:
            self._framing.setdefault(name, []).append(value)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._check_framing()
        self.expect_100_continue = self._framing.get(b"expect", [b""])[-1].lower() == b"100-continue"
        context = context_of(cast(Scope, self.scope))  # before the scope is copied: `_refuse_body` must find it
        context.alone = self._lone.alone(self)
        super().on_headers_complete()
        self._head_complete = True

    def on_body(self, body: bytes) -> None:
        """httptools sees no bodies; `_read_body` passes them on."""

    def on_message_complete(self) -> None:
        """Ignored: httptools calls it early for an upgrade request. `_begin_body` and `_read_body` end a request."""

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self._stop(TOO_LARGE)

    def _check_framing(self) -> None:
        """Refuses requests that RFC 9112 (3.2 and 6.1) forbids, or that a proxy could parse differently."""
        hosts = self._framing.get(b"host", ())
        if len(hosts) > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            self._stop(f"a request has one header Host, this one has {len(hosts)}")
        if hosts and not HOST.fullmatch(hosts[0]):
            self._stop("the header Host names no host")
        codings = self._framing.get(b"transfer-encoding")
        if codings and (len(codings) > 1 or codings[0].strip().lower() != b"chunked"):
            self._stop("the only Transfer-Encoding that is accepted is chunked")
        if codings and b"content-length" in self._framing:
            self._stop("a request has Content-Length or Transfer-Encoding, not both")

    def _stop(self, detail: str) -> None:
        self._detail = detail
        raise Refused(detail)  # the parser ends with an error of its own

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    # Refusals

    def _refuse(self, detail: str) -> None:
        """Answer 400 to a head that cannot be parsed."""
        self._refused = True
        instance = os.urandom(16).hex()
        self._on_refused(instance, client_address({"client": self.client}))
        response = problem_response(MalformedRequest(detail), instance, self._prefix)
        lines = [b"HTTP/1.1 400 Bad Request", *(b": ".join(header) for header in response.raw_headers)]
        self.transport.write(b"\r\n".join([*lines, b"connection: close", b"", bytes(response.body)]))
        self.transport.write_eof()  # not close(): a client that still sends could get a reset instead of the answer

    def _refuse_body(self, detail: str) -> None:
        """Let the request under way end with the fault."""
        self._refused = True
        if self.cycle.response_complete:
            self.transport.close()
            return
        self.cycle.keep_alive = False
        context_of(cast(Scope, self.cycle.scope)).fault = MalformedRequest(detail)
        self.cycle.message_event.set()

    # Idle connections

    def _check_later(self) -> None:
        self._seen = self.cycle
        self._check = self.loop.call_later(self._patience_seconds, self._break_off_if_same)

    def _break_off_if_same(self) -> None:
        if self.cycle is self._seen:
            self.transport.abort()
        else:
            self._check_later()
