"""The middleware, one file each, all pure ASGI: BaseHTTPMiddleware would hide disconnects from the routes."""

from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from ...settings import Settings
from ..fair_share import FairShare
from ..metrics import Metrics
from ..paths import GRPC_INFER, IMAGE_UPLOADS
from .admission import Admission
from .api_keys import ApiKeys
from .body_limits import BodyLimits
from .close_when_draining import CloseWhenDraining
from .head import Head
from .lingering_close import LingeringClose
from .prefix import Prefix
from .problem_documents import ProblemDocuments
from .request_log import RequestLog
from .security_headers import SecurityHeaders
from .tracing import Tracing

if TYPE_CHECKING:
    from ...telemetry.pipeline import Telemetry

__all__ = ["middleware"]


def middleware(
    settings: Settings,
    metrics: Metrics,
    share: FairShare,
    exposed_headers: tuple[str, ...],
    telemetry: "Telemetry | None" = None,
) -> list[Middleware]:
    """The middleware, outermost first. Middleware that raises a Problem must stand inside ProblemDocuments.

    `exposed_headers`: headers of answers that scripts of other origins may read. `telemetry`: None if it is off.
    """
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "X-Request-ID", "traceparent"],
        expose_headers=["X-Request-ID", "traceparent", "Retry-After", "ETag", *exposed_headers],
    )
    return [
        Middleware(CloseWhenDraining),
        Middleware(LingeringClose, seconds=settings.deadline_seconds),
        Middleware(Prefix, prefix=settings.root_path),
        *([Middleware(Tracing, telemetry=telemetry)] if telemetry else []),
        Middleware(RequestLog, metrics=metrics),
        Middleware(Head),
        Middleware(SecurityHeaders),
        *([cors] if settings.cors_origins else []),
        Middleware(ProblemDocuments),
        Middleware(ApiKeys, keys=settings.api_keys, admin_keys=settings.admin_keys, metrics_key=settings.metrics_key),
        Middleware(Admission, paths=IMAGE_UPLOADS | {GRPC_INFER}, share=share),
        Middleware(
            BodyLimits,
            max_bytes=settings.max_request_bytes,
            deadline_seconds=settings.deadline_seconds,
            min_rate=settings.min_body_bytes_per_second,
            share=share,
        ),
    ]
