"""MLServer: a custom runtime (docs.seldon.ai/mlserver/user-guide/custom). `mlserver start` on this folder.

settings.json sets one worker for each core (docs.seldon.ai/mlserver/user-guide/parallel-inference), without metrics and
debugging. Adaptive batching is off (the default): it joins tensors of equal shape, and files have no shape.
"""

import json

from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from tests.benchmarks.serving.peers.work import Graph, answer, decode


class Classifier(MLModel):
    async def load(self) -> bool:
        self.graph = Graph()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (upload,) = Base64Codec.decode_input(payload.inputs[0])
        output = StringCodec.encode_output("answer", [json.dumps(answer(self.graph.logits(decode(upload))))])
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])
