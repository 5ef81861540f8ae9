"""The service on Ray Serve (extra `ray`): the same application, with as many replicas as the load requires.

serve run app.cluster:deployment              # here, or on the cluster that RAY_ADDRESS names
serve run app.cluster:deployment views=3      # arguments are settings and override the environment
serve deploy deploy/ray/serve.yaml            # to a running cluster

A replica is a process with the whole application. Ray reserves cores for it (num_cpus), and the replica starts one
worker thread for each: replicas on one node share its cores. Each replica answers /metrics for all replicas, with the
label `replica`.
"""

import math
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

# Switches off Ray's usage reports. Ray reads it when it is imported and when it starts.
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
from ..process.server import log_ready
from ..settings import Settings

MAX_REPLICAS = 8  # a default: the configuration file may change it
ONGOING_PER_CORE = 4  # mean load at which Ray adds a replica: half of a worker's batch
# Ray counts probes, scrapes and refused requests, too. With these places they get through while the queue is full.
SPARE_REQUESTS = 64
FINAL_ANSWERS_SECONDS = 0.5  # time to answer the waiting requests after the engine has died
COLLECT_SECONDS = 2.0


def deployment(settings: Settings) -> serve.Application:
    """The application for Ray to run. `settings` are read once, where this is called, and apply to all replicas."""
    return replicas(settings).bind(settings)


def replicas(settings: Settings) -> serve.Deployment:
    """The deployment: how Ray starts, scales, checks and stops replicas. Bind it to the same settings."""
    cores = settings.inference_threads if "inference_threads" in settings.model_fields_set else 1
    configure = serve.deployment(
        name="classifier",
        ray_actor_options={"num_cpus": cores},
        autoscaling_config=autoscaling(cores),
        # The service enforces its own limits and answers 429 with Retry-After. Requests wait in Ray only while there is
        # no replica: DEADLINE_SECONDS does not cover that time.
        max_ongoing_requests=settings.queue_images + SPARE_REQUESTS,
        max_queued_requests=settings.queue_images,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=settings.grace_seconds,
        graceful_shutdown_timeout_s=settings.grace_seconds + settings.drain_seconds,
        logging_config={"enable_access_log": False},  # the service writes its own
    )
    return configure(serve.ingress()(Replica))


def autoscaling(cores: int) -> dict[str, int]:
    """How many replicas there are, and the load at which Ray adds one with this number of cores."""
    return {
        "min_replicas": 1,
        "max_replicas": MAX_REPLICAS,
        "target_ongoing_requests": ONGOING_PER_CORE * cores,
        "upscale_delay_s": 5,  # a replica is ready in seconds
    }


class Replica:
    """One process of the service. Ray calls its methods."""

    def __init__(self, settings: Settings) -> None:
        os.environ.pop("WEB_CONCURRENCY", None)  # a setting of uvicorn, which is not the server here
        self._settings = replica_settings(settings, ray.get_runtime_context().get_assigned_resources())
        configure_logging(settings.log_level)
        # Loaded here, not at the application's start, so that `serve status` shows what is wrong with a bundle.
        self._loaded = load_session(self._settings)
        self._logged = False

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._app = create_app(self._settings, self._loaded, _end_replica)
        self._app.router.routes.insert(0, self._metrics_route())  # the first route that matches answers
        if self._settings.trusted_proxies:
            trusted = list(self._settings.trusted_proxies)
            self._app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=trusted)  # uvicorn's server adds it itself
        self._app.add_middleware(OneRequestId)
        return self._app

    async def check_health(self) -> None:
        """Raise Unavailable if the service is not ready. Ray then replaces the replica. The first success is logged."""
        self._app.state.service.check_ready()
        if not self._logged:
            log_ready(self._app, self._settings, [])
            self._logged = True

    async def metrics(self) -> tuple[str, list[Metric]]:
        """This replica's id and its metrics."""
        return serve.get_replica_context().replica_id.unique_id, self._app.state.service.collect()

    async def all_metrics(self) -> bytes:
        """The metrics of all replicas that answer within COLLECT_SECONDS, in the Prometheus text format."""
        context = serve.get_replica_context()
        siblings = serve.get_deployment_handle(context.deployment, context.app_name)
        try:
            answers = await siblings.broadcast("metrics").results_async(
                timeout_s=COLLECT_SECONDS, return_exceptions=True
            )
        except TimeoutError:  # a node has died, and Ray has not noticed yet
            answers = [await self.metrics()]
        return generate_latest(ReplicaMetrics([answer for answer in answers if isinstance(answer, tuple)]))

    def _metrics_route(self) -> Any:
        router = APIRouter()

        @router.get("/metrics", include_in_schema=False)
        async def metrics() -> Response:
            return Response(await self.all_metrics(), media_type=CONTENT_TYPE_LATEST)

        return router.routes[0]


def _end_replica() -> None:
    """End the process, so that Ray starts another. It does not send SIGTERM: in a Ray worker the process would hang."""
    threading.Timer(FINAL_ANSWERS_SECONDS, os._exit, (1,)).start()


def replica_settings(settings: Settings, resources: dict[str, float]) -> Settings:
    """The settings with one worker thread for each core that Ray assigned to the replica, at least 1.

    Nobody loads a model anew: the request would reach one replica of several. There is no gRPC: replicas may share
    a machine, and its ports.
    """
    threads = max(1, math.floor(resources.get("CPU", 0)))
    return settings.model_copy(update={"inference_threads": threads, "admin_keys": (), "grpc_port": None})


class ReplicaMetrics:
    """The metrics of several replicas as one collector. Each sample has the label `replica`."""

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
    """ASGI middleware that removes X-Request-ID from answers if Ray's proxy has set it: the proxy adds it again."""

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
