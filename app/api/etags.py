"""Answers that a client keeps, and asks each time whether they still hold."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from ..bundle.manifest import sha256


def revalidated(
    request: Request, content: bytes, media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The content under an ETag of its bytes, or 304 for the client that has it."""
    etag = f'"{sha256(content)[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache", **(headers or {})}
    asked = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if asked & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
