"""BentoML. `bentoml serve tests.benchmarks.serving.peers.bentoml.server:Classifier`"""

from pathlib import Path

import bentoml

from tests.benchmarks.serving.peers.work import Graph, answer, decode


# One worker for each core: docs.bentoml.com/en/latest/build-with-bentoml/parallelize-requests.html. Each has two
# threads: connections are spread unevenly over the workers, so with one thread a core would be idle. Adaptive batching
# (get-started/adaptive-batching.html) is off: it waits for batches to fill and was slower here.
@bentoml.service(workers="cpu_count", threads=2, logging={"access": {"enabled": False}})
class Classifier:
    def __init__(self) -> None:
        self.graph = Graph()

    @bentoml.api
    def predict(self, image: Path) -> dict:
        return answer(self.graph.logits(decode(image.read_bytes())))
