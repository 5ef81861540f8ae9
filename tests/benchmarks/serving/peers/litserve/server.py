"""LitServe. `python -m tests.benchmarks.serving.peers.litserve.server PORT`"""

import sys

import litserve as ls
import numpy as np

from tests.benchmarks.serving.peers.work import Graph, answer, decode


class Classifier(ls.LitAPI):
    def setup(self, device):
        self.graph = Graph()

    def decode_request(self, request):
        return decode(request["file"].file.read())

    def batch(self, inputs):
        return np.concatenate(inputs)

    def predict(self, images):
        return self.graph.logits(images)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, logits):
        return answer(logits)


if __name__ == "__main__":
    # Batching (lightning.ai/docs/litserve/features/batching) gives a third more images a second here. There is one
    # worker for each core, with as many API servers (the default). LitServer's reference recommends fast_queue.
    api = Classifier(max_batch_size=8, batch_timeout=0.001)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=2, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
