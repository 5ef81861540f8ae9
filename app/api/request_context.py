"""What the middleware and the routes tell each other about one request.

context = context_of(scope)      # the same object, wherever in the application
context.deadline
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

if TYPE_CHECKING:
    from .middleware.body_limits import Budget

KEY = "classifier.request"  # in the ASGI scope


@dataclass
class RequestContext:
    """One request. RequestLog creates it; the fields are set by the middleware that each comment names."""

    request_id: str = ""  # RequestLog
    client: str = ""  # RequestLog; the address that shares are counted by
    traceparent: str = ""  # RequestLog; W3C Trace Context
    route: str | None = None  # Admission, for requests that it refuses before they are routed
    deadline: float = math.inf  # BodyLimits; seconds of time.monotonic()
    budget: "Budget | None" = None  # BodyLimits; memory for bodies
    outcome: str = "ok"  # the code of the problem that was answered
    log: dict[str, Any] = field(default_factory=dict)  # the route; more fields for the line in the log


def context_of(scope: Scope) -> RequestContext:
    """The request's context. A mounted application and a copied scope share it."""
    context: RequestContext | None = scope.get(KEY)
    if context is None:
        context = scope[KEY] = RequestContext()
    return context
