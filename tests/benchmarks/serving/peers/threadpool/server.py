"""FastAPI as recommended: the ONNX graph is called in a `def` function, which FastAPI runs in its thread pool.

fastapi.tiangolo.com/async/#path-operation-functions; fastapi.tiangolo.com/deployment/server-workers
"""

from fastapi import FastAPI, UploadFile

from tests.benchmarks.serving.peers.work import Graph, answer, decode

graph = Graph()
app = FastAPI()


@app.post("/predict")
def predict(file: UploadFile) -> dict:
    return answer(graph.logits(decode(file.file.read())))
