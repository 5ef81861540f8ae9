"""The peers: the command, the request body and the place of the predictions in the answer of each."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[4]
FOLDER = Path(__file__).parent
PACKAGE = "tests.benchmarks.serving.peers"


@dataclass(frozen=True)
class Body:
    content: bytes
    content_type: str


def multipart(part: str) -> Callable[[bytes, str], Body]:
    """A multipart form with one file, as `curl -F` and browsers send it."""

    def body(image: bytes, kind: str) -> Body:
        request = httpx.Request("POST", "http://x/", files={part: (f"image.{kind}", image, f"image/{kind}")})
        return Body(request.read(), request.headers["content-type"])

    return body


def open_inference(image: bytes, kind: str) -> Body:
    """A JSON message of the protocol with base64 data, because MLServer does not accept files.

    docs.seldon.ai/mlserver/user-guide/content-type
    """
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(image).decode()],
    }
    return Body(json.dumps({"inputs": [tensor]}).encode(), "application/json")


def predictions(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return answer["predictions"]


@dataclass(frozen=True)
class Peer:
    name: str
    title: str
    command: tuple[str, ...]  # may use {python}, {bin} and {port}, and {port1} and {port2}, two more free ports
    requirements: Path
    environment: dict[str, str] = field(default_factory=dict)
    path: str = "/predict"
    body: Callable[[bytes, str], Body] = multipart("file")
    predictions: Callable[[dict[str, Any]], list[dict[str, Any]]] = predictions
    venv: str = ""  # its virtual environment, by default one of its own


def uvicorn(name: str) -> tuple[str, ...]:
    # uvicorn[standard] includes uvloop and httptools. One worker for each core, as recommended in
    # fastapi.tiangolo.com/deployment/server-workers
    app = f"{PACKAGE}.{name}.server:app"
    return ("{python}", "-m", "uvicorn", app, "--port", "{port}", "--workers", "2", "--log-level", "warning")


def server(name: str) -> tuple[str, ...]:
    return ("{python}", "-m", f"{PACKAGE}.{name}.server", "{port}")


def service(name: str, workers: int) -> Peer:
    return Peer(
        name,
        f"(a) this service, WORKERS={workers}",
        ("{python}", "-m", "app", "serve"),
        ROOT / "deploy/requirements.lock",
        {"PORT": "{port}", "LOG_LEVEL": "warning", "WORKERS": str(workers)},
        venv="service",
    )


# Which of the two peers are compared with, by image. Chosen from earlier runs, before any run that is reported: one
# setting for all, a worker a core.
OWN = {"png": "service_workers", "jpeg": "service_workers"}
OURS = ("service", "service_workers")

PEERS = [
    service("service", 1),
    service("service_workers", 2),
    Peer(
        "textbook",
        "(b) FastAPI, torch eager, `async def`",
        uvicorn("textbook"),
        FOLDER / "textbook/requirements.txt",
    ),
    Peer(
        "threadpool",
        "(c) FastAPI, ONNX, thread pool",
        uvicorn("threadpool"),
        FOLDER / "threadpool/requirements.txt",
    ),
    Peer("litserve", "(d) LitServe", server("litserve"), FOLDER / "litserve/requirements.txt"),
    Peer(
        "bentoml",
        "(e) BentoML",
        ("{python}", "-m", "bentoml", "serve", f"{PACKAGE}.bentoml.server:Classifier", "--port", "{port}"),
        FOLDER / "bentoml/requirements.txt",
        {"BENTOML_DO_NOT_TRACK": "true"},
        body=multipart("image"),
    ),
    Peer(
        "ray_serve",
        "(f) Ray Serve",
        server("ray_serve"),
        FOLDER / "ray_serve/requirements.txt",
        # docs.ray.io: serve/advanced-guides/performance.html (throughput-optimized flags) and
        # kuberay/user-guides/serve-high-throughput.html (HAProxy, 2.5 times the images here).
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
        },
    ),
    Peer(
        "mlserver",
        "(g) MLServer",
        ("{bin}/mlserver", "start", str(FOLDER / "mlserver")),
        FOLDER / "mlserver/requirements.txt",
        {
            "MLSERVER_HTTP_PORT": "{port}",
            "MLSERVER_GRPC_PORT": "{port1}",
            "MLSERVER_METRICS_PORT": "{port2}",
            "MLSERVER_HOST": "127.0.0.1",
        },
        path="/v2/models/cifar10/infer",
        body=open_inference,
        predictions=lambda answer: json.loads(answer["outputs"][0]["data"][0])["predictions"],
    ),
]
