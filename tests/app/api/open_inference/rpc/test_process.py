"""A server in a process of its own: it starts, answers, turns unready and ends, over gRPC as over HTTP."""

import json
import signal

import grpc
import numpy as np
from grpc_health.v1.health_pb2 import HealthCheckResponse

from tests.app.api.open_inference.rpc.conftest import tensor, triton
from tests.app.server import serve


def test_a_server_answers_until_its_grace_is_over() -> None:
    with serve(GRPC_PORT=0, GRACE_SECONDS=60) as (process, http):
        assert process.stderr is not None
        ready = next(line for line in map(json.loads, process.stderr) if line["message"] == "ready")
        address = f"127.0.0.1:{ready['grpc_port']}"
        with triton.InferenceServerClient(address) as client, grpc.insecure_channel(address) as channel:
            images = tensor(np.zeros((1, 32, 32, 3), np.uint8))
            assert client.infer("cifar10", [images]).as_numpy("probabilities").shape == (1, 10)
            watching = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
            told = (HealthCheckResponse.FromString(answer).status for answer in watching)
            assert next(told) == HealthCheckResponse.SERVING
            process.send_signal(signal.SIGTERM)
            assert next(told) == HealthCheckResponse.NOT_SERVING
            assert not client.is_server_ready()
            assert client.infer("cifar10", [images]).as_numpy("probabilities").shape == (1, 10)
            process.send_signal(signal.SIGTERM)  # skips the grace
            assert list(told) == []
        assert process.wait(timeout=30) == 0
