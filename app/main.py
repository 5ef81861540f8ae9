"""The ASGI application: `create_app(settings)`, or `app.main:app` made from the environment.

python -m app serve
uvicorn app.main:app
"""

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from . import __version__
from .api import problems
from .api.middleware.limits import Admission, BodyLimits, Budget
from .api.middleware.prefix import Prefix
from .api.middleware.security import ApiKeys, SecurityHeaders
from .api.middleware.telemetry import Telemetry, TelemetryMiddleware
from .api.openapi import Application
from .api.problems import ProblemMiddleware
from .api.routes import explain, page, routers
from .api.service import ServiceState
from .bundle.reader import Bundle
from .inference.classifier import Classifier
from .inference.engine import Engine
from .inference.sessions import Session, load_session
from .process.connection import LingeringClose
from .process.server import CloseWhenDraining, refuse_several_processes
from .settings import Settings

logger = logging.getLogger("app")

IMAGE_PATHS = frozenset({"/predict", "/predict/batch", "/explain"})


def _end_process() -> None:
    """A service whose engine died is worth nothing: end it in order, and let whoever watches start another."""
    os.kill(os.getpid(), signal.SIGTERM)


def create_app(
    settings: Settings | None = None,
    loaded: tuple[Bundle, Session] | None = None,
    on_death: Callable[[], None] = _end_process,
) -> FastAPI:
    """The application; the model is `loaded`, or is loaded when the application starts.

    `on_death` is called when the engine met an error, by the thread that did: it should end the process.

    Raises SeveralProcesses in one of several workers, pydantic's ValidationError for settings that make no sense,
    BundleError or SessionError at the start.
    """
    refuse_several_processes()
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = _start(settings, loaded or load_session(settings), telemetry, on_death)
        app.state.service = service
        try:
            yield
        finally:
            service.draining = True
            service.engine.close()
            service.classifier.close()

    telemetry = Telemetry()
    app = Application(
        title="CIFAR-10 classifier",
        summary="Which of the ten CIFAR-10 classes an image shows, and how far to trust the answer.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        middleware=_middleware(settings, telemetry),
    )
    problems.install(app)
    for router in routers:
        app.include_router(router)
    app.mount("/assets/swagger", page.swagger_files)
    app.mount("/assets/web", page.own_files)
    return app


def _start(
    settings: Settings, loaded: tuple[Bundle, Session], telemetry: Telemetry, on_death: Callable[[], None]
) -> ServiceState:
    bundle, session = loaded
    telemetry.describe(bundle.manifest)
    engine = Engine(
        session.run,
        threads=settings.inference_threads,
        max_batch_images=settings.max_batch_images,
        queue_images=settings.queue_images,
        on_batch=telemetry.batch_images.observe,
        on_death=on_death,
    )
    classifier = Classifier(bundle.manifest, engine, settings)
    logger.info("ready", extra={"fields": {"model": bundle.manifest.version, "threads": settings.inference_threads}})
    return ServiceState(settings, bundle, engine, classifier, telemetry)


def _middleware(settings: Settings, telemetry: Telemetry) -> list[Middleware]:
    """From the outside in. What raises a Problem stands inside ProblemMiddleware."""
    stack = [
        Middleware(CloseWhenDraining),
        Middleware(LingeringClose, seconds=settings.deadline_seconds),
        Middleware(Prefix, prefix=settings.root_path),
        Middleware(TelemetryMiddleware, telemetry=telemetry),
        Middleware(SecurityHeaders),
    ]
    if settings.cors_origins:
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type", "X-Request-ID", "traceparent"],
                expose_headers=["X-Request-ID", "traceparent", "Retry-After", "ETag", *explain.HEADERS],
            )
        )
    return [
        *stack,
        Middleware(ProblemMiddleware),
        Middleware(ApiKeys, keys=settings.api_keys),
        Middleware(Admission, paths=IMAGE_PATHS),
        Middleware(
            BodyLimits,
            max_bytes=settings.max_request_bytes,
            deadline_seconds=settings.deadline_seconds,
            budget=Budget(settings.max_inflight_body_bytes),
        ),
    ]


def __getattr__(name: str) -> Any:
    # Made when it is asked for: importing create_app must not read the environment.
    if name == "app":
        return create_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
