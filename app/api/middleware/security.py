"""API keys and the headers that tell browsers what not to do. Pure ASGI."""

import hashlib
import hmac
from collections.abc import Iterable

from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import Unauthorized
from .prefix import route_path

PROBES = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
# The page holds nothing of the model's, and is where a visitor types the key in. Empty: the prefix without its slash.
PAGE = frozenset({"", "/"})
PAGE_FILES = "/assets/web/"

NOSNIFF = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Answers are data: nothing in them may run or load. Pages that need more say so themselves.
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"


class SecurityHeaders:
    """Adds the headers to every response; a Content-Security-Policy that the route set is kept."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(NOSNIFF)
                headers.setdefault("Content-Security-Policy", DATA_POLICY)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class ApiKeys:
    """Lets in who brings a key as `Authorization: Bearer`; probes and the page stay open. Raises Unauthorized."""

    def __init__(self, app: ASGIApp, keys: Iterable[SecretStr]) -> None:
        self.app = app
        # Digests are of one length, so that comparing them takes the same time whatever was sent.
        self._digests = [_digest(key.get_secret_value()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and not _is_open(route_path(scope)):
            self._check(Headers(scope=scope).get("authorization", ""))
        await self.app(scope, receive, send)

    def _check(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        # No early end: which key matched, or none, must not show in the time.
        known = sum(hmac.compare_digest(given, digest) for digest in self._digests)
        if scheme.lower() != "bearer" or not known:
            raise Unauthorized("send a known key in the header `Authorization: Bearer <key>`")


def _is_open(path: str) -> bool:
    return path in PROBES or path in PAGE or path.startswith(PAGE_FILES)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
