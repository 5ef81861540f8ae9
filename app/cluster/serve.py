"""The service on Ray Serve (extra `ray`): the same application, in as many replicas as the load asks for.

serve run app.cluster:deployment              # here, or on the cluster that RAY_ADDRESS names
serve run app.cluster:deployment views=3      # arguments are settings, and win over the environment
serve deploy deploy/ray/serve.yaml            # to a running cluster

A replica is a process with the whole application. Ray reserves cores for it (num_cpus), and it starts that many worker
threads: replicas that share a node share its cores. Any replica answers /metrics for all, each with a label `replica`.
"""

import math
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

# Read when ray is imported and when it starts: it would report to its makers.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from fastapi import APIRouter, FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, Metric, generate_latest
from ray import serve
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ..inference.sessions import load_session
from ..main import create_app
from ..process.logging import configure_logging
from ..settings import Settings

MAX_REPLICAS = 8  # the configuration file's to change
ONGOING_PER_CORE = 4  # on average, before there should be another replica: half a worker's batch
# Ray counts probes, scrapes and refusals as requests too: they get through when the service itself is full.
SPARE_REQUESTS = 64
LAST_WORDS_SECONDS = 0.5  # for the answers that say that the engine died
COLLECT_SECONDS = 2.0


def deployment(settings: Settings) -> serve.Application:
    """The application, for Ray to run. `settings`, read where this is called, are those of every replica."""
    return replicas(settings).bind(settings)


def replicas(settings: Settings) -> serve.Deployment:
    """How Ray runs, counts, asks and ends replicas; to be bound to the same settings."""
    cores = settings.inference_threads if "inference_threads" in settings.model_fields_set else 1
    described = serve.deployment(
        name="classifier",
        ray_actor_options={"num_cpus": cores},
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": MAX_REPLICAS,
            "target_ongoing_requests": ONGOING_PER_CORE * cores,
            "upscale_delay_s": 5,  # a replica is ready in seconds
        },
        # The service knows its own limits, and answers 429 with Retry-After. Waiting in Ray has no deadline of ours;
        # it is for the moments without a replica.
        max_ongoing_requests=settings.queue_images + SPARE_REQUESTS,
        max_queued_requests=settings.queue_images,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=settings.grace_seconds,
        graceful_shutdown_timeout_s=settings.grace_seconds + settings.drain_seconds,
        logging_config={"enable_access_log": False},  # the service writes its own
    )
    return described(serve.ingress()(Replica))


class Replica:
    """One process of the service, as Ray starts, asks and ends it."""

    def __init__(self, settings: Settings) -> None:
        os.environ.pop("WEB_CONCURRENCY", None)  # uvicorn's, which is not the server here
        self._settings = of_replica(settings, ray.get_runtime_context().get_assigned_resources())
        configure_logging(settings.log_level)
        # Here and not when the application starts, so that `serve status` says what is wrong with a bundle.
        self._loaded = load_session(self._settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._app = create_app(self._settings, self._loaded, _end_replica)
        self._app.router.routes.insert(0, self._metrics_route())  # the first route that matches answers
        if self._settings.trusted_proxies:
            trusted = list(self._settings.trusted_proxies)
            self._app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=trusted)  # uvicorn's server has it built in
        self._app.add_middleware(OneRequestId)
        return self._app

    async def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        self._app.state.service.check_ready()

    async def metrics(self) -> tuple[str, list[Metric]]:
        """This replica's id, and its metrics."""
        return serve.get_replica_context().replica_id.unique_id, self._app.state.service.collect()

    async def all_metrics(self) -> bytes:
        """Those of all replicas that answer in time, in the Prometheus text format."""
        context = serve.get_replica_context()
        siblings = serve.get_deployment_handle(context.deployment, context.app_name)
        try:
            answers = await siblings.broadcast("metrics").results_async(
                timeout_s=COLLECT_SECONDS, return_exceptions=True
            )
        except TimeoutError:  # a node that is gone, and not yet missed
            answers = [await self.metrics()]
        return generate_latest(Labelled([answer for answer in answers if isinstance(answer, tuple)]))

    def _metrics_route(self) -> Any:
        router = APIRouter()

        @router.get("/metrics", include_in_schema=False)
        async def metrics() -> Response:
            return Response(await self.all_metrics(), media_type=CONTENT_TYPE_LATEST)

        return router.routes[0]


def _end_replica() -> None:
    """End the process, for Ray to start another. A signal in order would leave it hanging: Ray's workers hold it."""
    threading.Timer(LAST_WORDS_SECONDS, os._exit, (1,)).start()


def of_replica(settings: Settings, resources: dict[str, float]) -> Settings:
    """The settings of a replica to which Ray assigned `resources`: as many worker threads as cores, at least 1."""
    return settings.model_copy(update={"inference_threads": max(1, math.floor(resources.get("CPU", 0)))})


class Labelled:
    """The metrics of several replicas as those of one registry; each sample says whose it is."""

    def __init__(self, replicas: Sequence[tuple[str, list[Metric]]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, metrics in self._replicas:
            for metric in metrics:
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    family.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
        yield from families.values()


class OneRequestId:
    """Middleware that leaves X-Request-ID to Ray's proxy, which adds the one that it gave the request. Pure ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id") if scope["type"] == "http" else None

        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("x-request-id") == given:
                    del headers["x-request-id"]
            await send(message)

        await self.app(scope, receive, send_without)
