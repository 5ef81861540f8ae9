"""Keeps a connection open while its client still sends after the answer."""

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAUSE_SECONDS = 0.0005  # after each piece, for each request whose body is discarded


class LingeringClose:
    """Keeps a connection open after an early answer, and discards what the client still sends.

    A client that still sends when the connection closes may see a reset instead of its answer, and many clients read
    only after they have sent everything. So the answer goes out at once, the rest of the body is read and discarded
    until the request is `seconds` old, and then the answer ends. All connections together are read at a limited rate,
    so that discarding takes at most about half of the event loop's time.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds
        self._discarding = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        if not ("transfer-encoding" in headers or headers.get("content-length", "0") != "0"):
            await self.app(scope, receive, send)
            return
        end = asyncio.get_running_loop().time() + self.seconds
        # A client that waits for "100 Continue" gets the answer instead, and sends no body on this connection.
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
            self._discarding += 1
            try:
                async with asyncio.timeout_at(end):
                    while not over:
                        await watched()
                        await asyncio.sleep(PAUSE_SECONDS * self._discarding)
            except TimeoutError:
                pass
            finally:
                self._discarding -= 1
            await send({"type": "http.response.body"})
