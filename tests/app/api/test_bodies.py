import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request

from app.api.bodies import read_body
from app.api.fair_share import Claim, FairShare
from app.api.request_context import KEY, RequestContext
from app.errors import (
    MalformedRequest,
    Overloaded,
    PayloadTooLarge,
    Problem,
    UnsupportedMediaType,
)

TEXT = bytes(range(256)) * 40


def request(content: bytes, encoding: str | None, share: FairShare, chunk: int = 1 << 16) -> Request:
    async def messages() -> AsyncIterator[dict]:
        for start in range(0, len(content), chunk):
            yield {"type": "http.request", "body": content[start : start + chunk], "more_body": True}
        yield {"type": "http.request", "body": b""}

    headers = [] if encoding is None else [(b"content-encoding", encoding.encode())]
    task = asyncio.current_task()
    assert task is not None
    claim = Claim(share, "127.0.0.1", task)
    scope = {"type": "http", "method": "POST", "headers": headers, KEY: RequestContext(claim=claim)}
    return Request(scope, messages().__anext__)


async def read(
    content: bytes, encoding: str | None, limit: int = len(TEXT), room: int = 1 << 30, chunk: int = 999
) -> bytes:
    share = FairShare(room)
    try:
        async with read_body(request(content, encoding, share, chunk), limit) as body:
            assert share.used_bytes == (len(body) if encoding not in (None, "identity") else 0)
            return bytes(body)
    finally:
        assert share.used_bytes == 0


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 20])
async def test_a_body_is_the_same_with_and_without_compression(chunk: int) -> None:
    for encoding, content in (
        (None, TEXT),
        ("identity", TEXT),
        ("gzip", gzip.compress(TEXT)),
        ("X-GZip ", gzip.compress(TEXT)),
        ("Deflate", zlib.compress(TEXT)),
    ):
        assert await read(content, encoding, chunk=chunk) == TEXT


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
async def test_compressed_bodies_of_every_size_are_read(size: int) -> None:
    for compress in (gzip.compress, zlib.compress):
        packed = compress(bytes(size))
        assert await read(packed, "gzip" if compress is gzip.compress else "deflate", limit=size) == bytes(size)


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "", "x" * 999])
async def test_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        await read(TEXT, encoding)
    assert len(caught.value.detail) < 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: b"",
        lambda packed: TEXT,
        lambda packed: packed[:-1],
        lambda packed: packed[:9],
        lambda packed: packed + b"\0",
        lambda packed: packed + packed,
        lambda packed: packed[:20] + b"\xff\xff\xff" + packed[23:],
        lambda packed: packed[:-6] + bytes(6),
    ],
)
async def test_corrupt_compressed_bodies_are_refused(encoding: str, damage: object) -> None:
    packed = gzip.compress(TEXT) if encoding == "gzip" else zlib.compress(TEXT)
    for chunk in (1, 1 << 20):
        with pytest.raises(MalformedRequest):
            await read(damage(packed), encoding, limit=1 << 20, chunk=chunk)


@pytest.mark.parametrize(
    ("limit", "room", "problem"),
    [
        (len(TEXT) - 1, 1 << 30, PayloadTooLarge),
        (len(TEXT), len(TEXT) - 1, Overloaded),
        (10_000_000, 2 << 20, Overloaded),
    ],
)
async def test_decompression_stops_at_the_limit(limit: int, room: int, problem: type[Problem]) -> None:
    content = TEXT if limit <= len(TEXT) else bytes(100_000_000)
    with pytest.raises(problem):
        await read(zlib.compress(content), "deflate", limit, room)


async def test_a_body_that_is_not_compressed_has_the_same_limit() -> None:
    with pytest.raises(PayloadTooLarge):
        await read(TEXT, None, limit=len(TEXT) - 1)
