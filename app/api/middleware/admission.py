"""Refusal of uploads while the queue is full."""

from collections.abc import Container

from starlette.types import ASGIApp, Receive, Scope, Send

from ..fair_share import FairShare
from ..paths import route_path
from ..request_context import context_of


class Admission:
    """Rejects uploads with 429 as soon as their headers arrive while the queue is full for its network.

    Routes take places when a body is complete, so an announced upload holds none.

    Under overload most requests end here: routing and FastAPI's dependencies would cost two thirds of a refusal.
    """

    def __init__(self, app: ASGIApp, paths: Container[str], share: FairShare) -> None:
        self.app = app
        self.share = share
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and (path := route_path(scope)) in self.paths:
            context = context_of(scope)
            context.route = path
            self.share.check_places(context.client, scope["app"].state.service.places, 1)
        await self.app(scope, receive, send)
