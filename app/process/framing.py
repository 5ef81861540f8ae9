"""Finds the content and the end of a request's body: by its length, or by chunks (RFC 9112, 6 and 7.1).

body = Chunks()
content, rest = body.take(data)     # as data comes; `rest` belongs to the next request
body.complete

Chunk sizes, chunk extensions and trailers are bounded. Trailers are dropped.
"""

import re
from typing import Protocol

MAX_LINE_BYTES = 1024  # the line with a chunk's size and extensions
MAX_TRAILER_BYTES = 64 * 1024  # all trailers together, like all headers
# As in Go's net/http: extensions may be as long as the content, plus 16 bytes a chunk, plus this in all.
MAX_EXCESS_BYTES = 16 * 1024
FREE_BYTES_PER_CHUNK = 16

CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class FramingError(Exception):
    """The framing of the body breaks HTTP. The message is for the client."""


class Body(Protocol):
    """A body that is being read."""

    complete: bool

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """The content in `data`, and the bytes after the body. Raises FramingError."""


class Sized:
    """A body of `length` bytes."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.complete = not length

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        content = data[: self._left]
        self._left -= len(content)
        self.complete = not self._left
        return content, data[len(content) :]


class Chunks:
    """A chunked body."""

    def __init__(self) -> None:
        self.complete = False
        self._line = b""  # the unfinished line
        self._left = 0  # bytes of the chunk that are to come, with its line end
        self._excess = 0
        self._trailer_bytes = 0
        self._in_trailers = False

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        data, self._line = self._line + data, b""
        found: list[bytes] = []
        at = 0
        while at < len(data):
            if self._left:
                at = self._take_chunk(data, at, found)
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._keep(data[at:])
                break
            line, at = data[at:end], end + 2
            if not self._in_trailers:
                self._begin_chunk(line)
            elif line:
                self._drop_trailer(line)
            else:
                self.complete = True
                break
        return b"".join(found), data[at:] if self.complete else b""

    def _take_chunk(self, data: bytes, at: int, found: list[bytes]) -> int:
        """Returns the end of the chunk in `data`; the length of `data` if the chunk is longer."""
        if self._left > 2:
            content = data[at : at + self._left - 2]
            found.append(content)
            self._left -= len(content)
            at += len(content)
        while self._left and self._left <= 2 and at < len(data):
            if data[at] != b"\r\n"[2 - self._left]:
                raise FramingError("a chunk of the body is longer than it says")
            self._left -= 1
            at += 1
        return at

    def _begin_chunk(self, line: bytes) -> None:
        parts = CHUNK_LINE.fullmatch(line) if len(line) <= MAX_LINE_BYTES else None
        if parts is None:
            raise FramingError("a chunk of the body has no size that can be read")
        size = int(parts[1], 16)
        self._excess = max(0, self._excess + len(line) + 2 - FREE_BYTES_PER_CHUNK - 2 * size)
        if self._excess > MAX_EXCESS_BYTES:
            raise FramingError("the chunks of the body have more extensions than content")
        if size:
            self._left = size + 2
        else:
            self._in_trailers = True

    def _drop_trailer(self, line: bytes) -> None:
        if not TRAILER_LINE.fullmatch(line):
            raise FramingError("a trailer of the body cannot be parsed")
        self._trailer_bytes += len(line) + 2
        self._check_trailers(0)

    def _keep(self, line: bytes) -> None:
        if self._in_trailers:
            self._check_trailers(len(line))
        elif len(line) > MAX_LINE_BYTES:
            raise FramingError("a chunk of the body has no size that can be read")
        self._line = line

    def _check_trailers(self, more: int) -> None:
        if self._trailer_bytes + more > MAX_TRAILER_BYTES:
            raise FramingError(f"the trailers are larger than the {MAX_TRAILER_BYTES:,} bytes that are accepted")
