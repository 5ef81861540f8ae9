"""HEAD wherever there is GET (RFC 9110, 9.3.2); FastAPI's routes have none."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Head:
    """Answers HEAD as GET, with the same headers and without the body. A 405 allows HEAD where it allows GET."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def allowing(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 405:
                _allow_head(MutableHeaders(scope=message))
            await send(message)

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await allowing(message)

        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, allowing)
            return
        # A copy, because the server and the log must see the request as it came.
        inner = {**scope, "method": "GET"}
        try:
            await self.app(inner, receive, without_body)
        finally:
            scope["route"] = inner.get("route")  # for the log


def _allow_head(headers: MutableHeaders) -> None:
    methods = {method.strip() for method in headers.get("allow", "").split(",")}
    if "GET" in methods:
        headers["Allow"] = ", ".join(sorted(methods | {"HEAD"}))
