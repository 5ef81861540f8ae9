"""How long a connection is held for a client that is slow to send, or to take its answer.

LingeringClose  ASGI middleware: after an answer that did not wait for the body, reads on, and forgets what it reads
Connection      uvicorn's, but for a limit on how long nothing may come of it
"""

import asyncio
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


class LingeringClose:
    """A client that still sends when the connection closes may see a reset instead of its answer.

    Many read only once they have sent everything, too. So the answer goes out, what still comes is read until the
    request is `seconds` old, and only then the answer counts as over.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        if not ("transfer-encoding" in headers or headers.get("content-length", "0") != "0"):
            await self.app(scope, receive, send)
            return
        end = asyncio.get_running_loop().time() + self.seconds
        # Who asks before sending is answered instead, and then has nothing to send on this connection any more.
        asks = headers.get("expect", "").lower() == "100-continue"
        begun = over = answered = False

        async def watched() -> Message:
            nonlocal begun, over
            begun = True
            message = await receive()
            over = not message.get("more_body", False)
            return message

        async def lingering(message: Message) -> None:
            nonlocal answered
            if asks and not begun:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message)["Connection"] = "close"
            elif message["type"] == "http.response.body" and not (over or message.get("more_body", False)):
                answered = True
                message = {**message, "more_body": True}
            await send(message)

        await self.app(scope, watched, lingering)
        if answered:
            try:
                async with asyncio.timeout_at(end):
                    while not over:
                        await watched()
            except TimeoutError:
                pass
            await send({"type": "http.response.body"})


class Connection(HttpToolsProtocol):
    """Breaks off when a whole `patience_seconds` pass without a new request, or with one that does not end.

    uvicorn has no limit for a client that connects and says nothing, sends headers without end, dribbles a body that
    was refused, or does not take its answer. `patience_seconds` must be more than a request may take.
    """

    def __init__(self, *args: Any, patience_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience_seconds = patience_seconds
        self._seen: RequestResponseCycle | None = None
        self._check: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._check_later()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._check:
            self._check.cancel()

    def _check_later(self) -> None:
        self._seen = self.cycle
        self._check = self.loop.call_later(self._patience_seconds, self._break_off_if_same)

    def _break_off_if_same(self) -> None:
        if self.cycle is self._seen:
            self.transport.abort()
        else:
            self._check_later()
