"""API keys, as `Authorization: Bearer <key>`."""

import hashlib
import hmac
from collections.abc import Iterable

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import Unauthorized
from ..paths import LOADS, METRICS, PAGE, PAGE_FILES, PROBES, PROBLEMS, route_path


class ApiKeys:
    """Lets a request pass if it brings a known key; probes, the page and problem pages stay open. Raises Unauthorized.

    `keys`: for all requests; none lets all pass. `admin_keys`: one is needed to load a model, and is good for all.
    `metrics_key`: it or any other key is needed for metrics, and it is good for nothing else.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Iterable[SecretStr],
        admin_keys: Iterable[SecretStr],
        metrics_key: SecretStr | None = None,
    ) -> None:
        self.app = app
        # Digests have one length, so that a comparison takes the same time for every key.
        self._admin = [_digest(key.get_secret_value()) for key in admin_keys]
        digests = [_digest(key.get_secret_value()) for key in keys]
        self._digests = digests and [*digests, *self._admin]
        self._metrics = self._digests
        if metrics_key:
            self._metrics = [_digest(metrics_key.get_secret_value()), *digests, *self._admin]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (needed := self._needed(route_path(scope))):
            of = " of ADMIN_KEYS" if needed is self._admin else ""
            _check(Headers(scope=scope).get("authorization", ""), needed, of)
        await self.app(scope, receive, send)

    def _needed(self, path: str) -> list[bytes]:
        """The digests of the keys that the path needs; empty if it needs none."""
        if self._admin and path.startswith(LOADS):
            return self._admin
        if path == METRICS:
            return self._metrics
        return [] if _is_open(path) else self._digests


def _check(authorization: str, digests: Iterable[bytes], of: str) -> None:
    scheme, _, key = authorization.partition(" ")
    given = _digest(key.strip())
    # All keys are compared: the time must not tell which one matched.
    known = sum(hmac.compare_digest(given, digest) for digest in digests)
    if scheme.lower() != "bearer" or not known:
        raise Unauthorized(f"send a known key{of} in the header `Authorization: Bearer <key>`")


def _is_open(path: str) -> bool:
    return path in PROBES or path in PAGE or path.startswith((PAGE_FILES, PROBLEMS))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
