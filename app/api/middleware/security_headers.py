"""Security headers for browsers, and redirects that stay on this host."""

from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Answers are data: nothing in them may run or load. Pages that need more set a policy of their own.
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"


class SecurityHeaders:
    """Adds the headers to every response. A Content-Security-Policy that the route set is kept.

    Redirects become relative: Starlette builds them from the header Host, which the client chooses.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Content-Security-Policy", DATA_POLICY)
                if 300 <= message["status"] < 400 and "location" in headers:
                    headers["location"] = _relative(headers["location"])
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _relative(location: str) -> str:
    """The path and the query. Two slashes at the beginning would name a host again."""
    parts = urlsplit(location)
    return "/" + parts.path.lstrip("/\\") + (f"?{parts.query}" if parts.query else "")
