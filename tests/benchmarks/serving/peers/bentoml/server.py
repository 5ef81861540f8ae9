"""BentoML. `bentoml serve tests.benchmarks.serving.peers.bentoml.server:Classifier`"""

from pathlib import Path

import bentoml

from tests.benchmarks.serving.peers.work import Graph, answer, decode


# docs.bentoml.com/en/latest/build-with-bentoml/parallelize-requests.html: a worker a core. Two threads in each, as its
# reference of configurations allows: connections are unevenly spread over workers, and one thread leaves a core idle.
# Adaptive batching (get-started/adaptive-batching.html) waits for batches to fill: it was slower here, and is off.
@bentoml.service(workers="cpu_count", threads=2, logging={"access": {"enabled": False}})
class Classifier:
    def __init__(self) -> None:
        self.graph = Graph()

    @bentoml.api
    def predict(self, image: Path) -> dict:
        return answer(self.graph.logits(decode(image.read_bytes())))
