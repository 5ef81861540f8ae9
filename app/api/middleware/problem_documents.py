"""Problem documents for errors that occur outside of routes."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import Unavailable
from ..problems import answer


class ProblemDocuments:
    """Turns errors of the middleware inside it, and unexpected errors, into problem documents."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            response = answer(error, scope)
            if started:
                raise  # a part of the answer is sent already, so the connection must be closed
            await response(scope, receive, send)
        except asyncio.CancelledError:
            service = getattr(scope["app"].state, "service", None) if "app" in scope else None
            if started or service is None or not service.draining:
                raise
            # DRAIN_SECONDS are over: the server cancels the remaining requests, and would answer with a bare 500.
            await answer(Unavailable("the service is shutting down"), scope)(scope, receive, send)
