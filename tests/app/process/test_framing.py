"""Bodies as they come: in one piece or in many, right or wrong, long or endless."""

import contextlib
from collections.abc import Iterable

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.process.framing import MAX_EXCESS_BYTES, MAX_TRAILER_BYTES, Body, Chunks, FramingError, Sized

HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in zip(places, places[1:], strict=False)]


def read(body: Body, data: Iterable[bytes]) -> tuple[bytes, bytes]:
    """The content, and what follows the body."""
    content = rest = b""
    for piece in data:
        if body.complete:
            rest += piece
            continue
        more, rest = body.take(piece)
        content += more
    return content, rest


def encoded(contents: list[bytes], extension: bytes = b"", trailers: bytes = b"") -> bytes:
    chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(content), extension, content) for content in contents if content)
    return chunks + b"0\r\n" + trailers + b"\r\n"


@given(st.binary(max_size=60), st.integers(0, 60), st.lists(st.integers(0, 100)))
def test_a_sized_body_ends_with_its_size(data: bytes, length: int, cuts: list[int]) -> None:
    body = Sized(length)
    assert read(body, pieces(data, cuts)) == (data[:length], data[length:])
    assert body.complete == (len(data) >= length)


@given(st.lists(st.binary(max_size=40), max_size=6), st.binary(max_size=9), st.lists(st.integers(0, 500)))
def test_chunks_are_parsed_alike_in_pieces_of_any_size(contents: list[bytes], after: bytes, cuts: list[int]) -> None:
    for extension, trailers in ((b"", b""), (b";a=b", b"X: y\r\nZ:\r\n"), (b' ; a="b c"', b"Authorization: x\r\n")):
        body = Chunks()
        data = encoded(contents, extension, trailers) + after
        assert read(body, pieces(data, cuts)) == (b"".join(contents), after)
        assert body.complete


class Oracle:
    def __init__(self) -> None:
        self.body = b""
        self.complete = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


ALPHABET = st.sampled_from([b"0", b"1", b"a", b"F", b"g", b";", b"=", b" ", b"\t", b"\r", b"\n", b"\r\n", b"\0", b"-"])


@given(st.lists(ALPHABET, max_size=12).map(b"".join))
def test_framing_that_another_parser_refuses_is_refused(data: bytes) -> None:
    """llhttp in its strict mode is the other one: a body that it refuses, or does not find, must not be found here."""
    oracle = Oracle()
    parser = httptools.HttpRequestParser(oracle)
    with contextlib.suppress(httptools.HttpParserError):
        parser.feed_data(HEAD + data)
    body = Chunks()
    try:
        content, _ = body.take(data)
    except FramingError:
        return
    if body.complete:
        assert oracle.complete and content == oracle.body


WRONG = [
    b"x\r\n",
    b"\r\n",
    b"-1\r\n",
    b"+1\r\n",
    b"0x1\r\n",
    b" 1\r\n",
    b"1\n",
    b"1 \r\nx\r\n",
    b"1\r\nxy\r\n",
    b"1\r\nx\n",
    b"1;\0\r\nx\r\n",
    b"1;a\nb\r\nx\r\n",
    b"f" * 16 + b"\r\n",
    b"0" * 2000 + b"\r\n",
    b"0\r\nno colon\r\n\r\n",
    b"0\r\n: no name\r\n\r\n",
    b"0\r\na: \0\r\n\r\n",
    b"0\r\n a: b\r\n\r\n",
]


@pytest.mark.parametrize("data", WRONG)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_malformed_chunks_are_refused(data: bytes, size: int) -> None:
    with pytest.raises(FramingError):
        read(Chunks(), [data[at : at + size] for at in range(0, len(data), size)] + [b"y" * 2000])


ENDLESS = {
    "a size": (b"", b"0"),
    "an extension": (b"1;", b"x"),
    "extensions": (b"", b"1;" + b"x" * 100 + b"\r\ny\r\n"),
    "a trailer": (b"0\r\nX: ", b"x"),
    "trailers": (b"0\r\n", b"X: y\r\n"),
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("size", [1000, 60_000])
def test_endless_framing_is_refused(name: str, size: int) -> None:
    first, more = ENDLESS[name]
    body = Chunks()
    body.take(first)
    sent = 0
    with pytest.raises(FramingError):
        while sent < 10 * (MAX_TRAILER_BYTES + MAX_EXCESS_BYTES):
            piece = more * (size // len(more))
            body.take(piece)
            sent += len(piece)


def test_tiny_chunks_are_content() -> None:
    content, rest = read(Chunks(), [b"1\r\nx\r\n" * 1000] * 100 + [b"0\r\n\r\n"])
    assert (content, rest) == (b"x" * 100_000, b"")
