"""A request's whole body, unpacked where Content-Encoding says that it is packed.

What it unpacks to is limited like what is sent, and counts against the same memory. Unpacking stops at the first byte
beyond the limit.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from ..errors import MalformedRequest, PayloadTooLarge, UnsupportedMediaType
from .request_context import context_of

# zlib's windowBits; HTTP's deflate is a zlib stream (RFC 9110, 8.4.1.2)
FORMATS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
# Unpacked at once. It takes the event loop a fraction of a millisecond, and many bodies may be unpacked together.
STEP_BYTES = 1 << 16


@asynccontextmanager
async def read_body(request: Request, max_bytes: int) -> AsyncIterator[bytearray]:
    """The body, at most `max_bytes` long once unpacked; its memory is accounted for until the block ends.

    Raises UnsupportedMediaType, MalformedRequest, PayloadTooLarge, Overloaded, RequestTimeout or ClientDisconnect.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *FORMATS):
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r} is not accepted: send gzip, deflate or neither")
    content = bytearray()
    if encoding == "identity":
        async for chunk in request.stream():
            if len(content) + len(chunk) > max_bytes:
                raise PayloadTooLarge(f"the body has more than the {max_bytes} bytes that are accepted")
            content += chunk
        yield content
        return
    claim = context_of(request.scope).claim
    assert claim is not None
    taken = 0
    try:
        async for piece in _unpacked(request.stream(), FORMATS[encoding]):
            if len(content) + len(piece) > max_bytes:
                raise PayloadTooLarge(f"the body unpacks to more than the {max_bytes} bytes that are accepted")
            await claim.take_bytes(len(piece))
            taken += len(piece)
            content += piece
        yield content
    finally:
        claim.give_back_bytes(taken)


async def _unpacked(chunks: AsyncIterator[bytes], window_bits: int) -> AsyncIterator[bytes]:
    inflater = zlib.decompressobj(window_bits)
    try:
        async for chunk in chunks:
            while chunk:
                if inflater.eof:
                    raise MalformedRequest("something follows the end of the compressed body")
                yield inflater.decompress(chunk, STEP_BYTES)
                chunk = inflater.unconsumed_tail or inflater.unused_data
                await asyncio.sleep(0)  # let others have their turn
        yield inflater.flush()
    except zlib.error:
        raise MalformedRequest("the body is not what its Content-Encoding says, or it is corrupt") from None
    if not inflater.eof:
        raise MalformedRequest("the compressed body is cut short")
