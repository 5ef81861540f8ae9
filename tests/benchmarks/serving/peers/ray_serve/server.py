"""Ray Serve, with its FastAPI ingress. `python -m tests.benchmarks.serving.peers.ray_serve.server PORT`"""

import signal
import sys

import ray
from fastapi import FastAPI, UploadFile
from ray import serve

from tests.benchmarks.serving.peers.work import Graph, answer, decode

app = FastAPI()


# One replica for each core. With `async def`, requests do not run in FastAPI's thread pool, and more ongoing requests
# than the default of 5 are possible: docs.ray.io/en/latest/serve/advanced-guides/performance.html.
@serve.deployment(num_replicas=2, max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
@serve.ingress(app)
class Classifier:
    def __init__(self) -> None:
        self.graph = Graph()

    @app.post("/predict")
    async def predict(self, file: UploadFile) -> dict:
        return answer(self.graph.logits(decode(await file.read())))


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Classifier.bind(), route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
