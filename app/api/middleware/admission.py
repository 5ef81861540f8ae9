"""Refusal of uploads while the queue is full."""

from collections.abc import Container

from starlette.types import ASGIApp, Receive, Scope, Send

from ..paths import route_path
from ..request_context import context_of


class Admission:
    """Rejects uploads with 429 as soon as their headers arrive while the queue is full; routes then count exactly.

    Under overload most requests end here: routing and FastAPI's dependencies would cost two thirds of a refusal.
    """

    def __init__(self, app: ASGIApp, paths: Container[str]) -> None:
        self.app = app
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and (path := route_path(scope)) in self.paths:
            context_of(scope).route = path
            with scope["app"].state.service.engine.reserve(1):
                pass
        await self.app(scope, receive, send)
