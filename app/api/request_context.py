"""What the middleware and the routes tell each other about one request.

context = context_of(scope)      # the same object, wherever in the application
context.deadline
"""

import ipaddress
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

from ..errors import Problem

if TYPE_CHECKING:
    from ..inference.answers import Classification
    from .fair_share import Claim

KEY = "classifier.request"  # in the ASGI scope
MAX_ADDRESS = 64  # characters: an IPv6 address and its zone
ADDRESS = re.compile(r"[0-9A-Fa-f.:]+(%[A-Za-z0-9._-]+)?")


@dataclass
class RequestContext:
    """One request. The first who asks creates it; the fields are set by the middleware that each comment names."""

    request_id: str = ""  # RequestLog
    client: str = ""  # RequestLog; whom shares are counted by, see network_of
    traceparent: str = ""  # Tracing if it is on, else RequestLog; W3C Trace Context
    route: str | None = None  # Admission and mounted applications, for requests that no route of ours answers
    alone: bool = False  # the connection; whether no other one sends requests
    deadline: float = math.inf  # the client, if it came by gRPC, and BodyLimits; seconds of time.monotonic()
    claim: "Claim | None" = None  # BodyLimits; what this request holds of the memory and of the queue
    began: float | None = None  # the route, when it begins to read images; seconds of time.monotonic()
    read: float | None = None  # the route, when the body is whole; the same
    results: "Sequence[Classification]" = ()  # the route; what it found
    fault: Problem | None = None  # the connection; what is wrong with a body that came
    outcome: str = "ok"  # the code of the problem that was answered
    log: dict[str, Any] = field(default_factory=dict)  # the route; more fields for the line in the log


def context_of(scope: Scope) -> RequestContext:
    """The request's context. A mounted application and a copied scope share it."""
    context: RequestContext | None = scope.get(KEY)
    if context is None:
        context = scope[KEY] = RequestContext()
    return context


def client_address(scope: Mapping[str, Any]) -> str:
    """The client's address; empty if there is none, as when a proxy forwards a text that is no IP address."""
    host = (scope.get("client") or ("",))[0]
    return host if network_of(host) else ""


def network_of(host: str) -> str:
    """Whom an address belongs to: an IPv4 address to itself, an IPv6 address to its /64; empty for what is neither."""
    return _parsed(host) if len(host) <= MAX_ADDRESS else ""  # what is longer shall not fill the cache


@lru_cache(4096)
def _parsed(host: str) -> str:
    try:
        address = ipaddress.ip_address(host) if ADDRESS.fullmatch(host) else None
    except ValueError:
        address = None
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped or ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address or "")
