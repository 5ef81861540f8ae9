"""The ASGI application: `create_app(settings)`, or `app.main:app` made from the environment.

python -m app serve
uvicorn app.main:app
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError

from . import __version__
from .api import problems
from .api.fair_share import FairShare
from .api.metrics import Metrics
from .api.middleware import middleware
from .api.middleware.tracing import of_fastapi
from .api.openapi import Application, operation_id
from .api.routes import explain, feedback, page, routers
from .api.service import Service
from .bundle.reader import Bundle
from .inference.repository import Loaded
from .inference.sessions import Session
from .process.logging import dropped_lines
from .process.runtime import refuse_several_processes
from .settings import DEFAULT_MODEL, Settings, SettingsError
from .telemetry import TelemetryError
from .telemetry import start as start_telemetry
from .validation_errors import one_line
from .workers.holdings import Holdings
from .workers.worker import Worker


def _end_process() -> None:
    """End the process in order after its engine died, so that its supervisor starts another one."""
    os.kill(os.getpid(), signal.SIGTERM)


def create_app(
    settings: Settings | None = None,
    loaded: tuple[Bundle, Session] | Loaded | None = None,
    on_death: Callable[[], None] = _end_process,
    worker: Worker | None = None,
) -> FastAPI:
    """The application; the default model is `loaded`, or is loaded when the application starts, as the others are.

    `loaded` may be several models by their names, and is emptied then. `worker`: if this process is one of several.

    After an error of the engine, the thread that met it calls `on_death`, which should end the process.

    Raises SeveralProcesses in one of several processes of uvicorn, pydantic's ValidationError or SettingsError for
    invalid settings, TelemetryError for variables OTEL_*, SettingsError without the extra that GRPC_PORT needs, and
    BundleError, SessionError or SettingsError when the application starts.
    """
    refuse_several_processes()
    settings = settings or Settings()
    if settings.workers > 1 and worker is None:
        raise SettingsError("WORKERS: only `python -m app serve` starts several processes")
    rpc = _rpc() if settings.grpc_port is not None else None

    @asynccontextmanager
    async def lifespan(app: Application) -> AsyncIterator[None]:
        service = Service(settings, metrics, given, on_death, worker)
        app.state.service = service
        if worker:
            worker.open()
        try:
            app.state.rpc = await rpc.start(app, settings) if rpc else None
            yield
        finally:
            if worker:
                worker.close()
            service.draining = True
            if getattr(app.state, "rpc", None):
                await app.state.rpc.stop(settings.drain_seconds)
            service.close()
            if telemetry:
                await asyncio.to_thread(telemetry.close)

    # Emptied at the start: a model that is replaced is freed.
    given: Loaded = {DEFAULT_MODEL: loaded} if isinstance(loaded, tuple) else loaded or {}
    share = FairShare(settings.max_inflight_body_bytes, Holdings(worker) if worker else None)
    if worker:
        worker.mail.on("displace", lambda asked: share.displace(*asked))
    metrics = Metrics(list(settings.folders))
    metrics.count("log_lines_dropped", "Lines of the log that could not be written.", dropped_lines)
    if settings.feedback_dir:
        metrics.expect_feedback()
    telemetry = start_telemetry(metrics.registry)
    app = Application(
        title="CIFAR-10 classifier",
        summary="Classifies images into the ten CIFAR-10 classes, and says how far to trust each answer.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=operation_id,
        lifespan=lifespan,
        middleware=middleware(settings, metrics, share, tuple(explain.HEADERS), telemetry),
        telemetry=of_fastapi(telemetry, settings.root_path),
    )
    problems.install(app)
    for router in [*routers, *([feedback.router] if settings.feedback_dir else [])]:
        app.include_router(router)
    if rpc:
        rpc.install(app)
    for files in (page.swagger_files, page.own_files):
        app.mount(files.mount, files)
    return app


def _rpc() -> ModuleType:
    """On demand: without GRPC_PORT nothing of gRPC is imported. Raises SettingsError."""
    try:
        from .api.open_inference.rpc import server
    except ImportError as error:
        raise SettingsError(f"GRPC_PORT needs the extra 'grpc' ({error})") from None
    return server


def refusal(error: ValidationError | SettingsError) -> str:
    """Why the settings are refused, on one line. It never shows their values, which may be secret."""
    if isinstance(error, SettingsError):
        return str(error)
    return one_line(error.errors(include_input=False), spell=str.upper)


def __getattr__(name: str) -> Any:
    # On demand: an import of create_app must not read the environment.
    if name == "app":
        try:
            return create_app()
        except (ValidationError, SettingsError) as error:
            raise SystemExit(f"error: {refusal(error)}") from None  # exit code 1; uvicorn would show a traceback
        except TelemetryError as error:
            raise SystemExit(f"error: {error}") from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
