"""Answers that a client caches and revalidates each time (RFC 9110, sections 8.8.3 and 13.1.2)."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from ..bundle.manifest import sha256


def revalidated(
    request: Request, content: bytes, media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The content with a hash of its bytes as ETag; 304 without it if the client's If-None-Match has the same ETag."""
    etag = f'"{sha256(content)[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache", **(headers or {})}
    cached = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if cached & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
