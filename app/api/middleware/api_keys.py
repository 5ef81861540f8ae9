"""API keys, as `Authorization: Bearer <key>`."""

import hashlib
import hmac
from collections.abc import Iterable

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import Unauthorized
from ..paths import PAGE, PAGE_FILES, PROBES, route_path


class ApiKeys:
    """Lets a request pass if it brings a known key. Probes and the page stay open. Raises Unauthorized."""

    def __init__(self, app: ASGIApp, keys: Iterable[SecretStr]) -> None:
        self.app = app
        # Digests have one length, so that a comparison takes the same time for every key.
        self._digests = [_digest(key.get_secret_value()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and not _is_open(route_path(scope)):
            self._check(Headers(scope=scope).get("authorization", ""))
        await self.app(scope, receive, send)

    def _check(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        # All keys are compared: the time must not tell which one matched.
        known = sum(hmac.compare_digest(given, digest) for digest in self._digests)
        if scheme.lower() != "bearer" or not known:
            raise Unauthorized("send a known key in the header `Authorization: Bearer <key>`")


def _is_open(path: str) -> bool:
    return path in PROBES or path in PAGE or path.startswith(PAGE_FILES)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
