"""The textbook solution: FastAPI and PyTorch in eager mode, with all work inside `async def`.

It has one worker for each core (fastapi.tiangolo.com/deployment/server-workers). Each uses one PyTorch thread, so that
the workers do not compete (docs.pytorch.org/docs/stable/notes/cpu_threading_torchscript_inference.html).
"""

import torch
from fastapi import FastAPI, UploadFile
from safetensors.torch import load_file

from app.network.mobilenet import Preprocessed, mobilenet_v2
from tests.benchmarks.serving.peers.work import BUNDLE, MANIFEST, answer, decode


def load_model() -> torch.nn.Module:
    from app.bundle.manifest import Architecture

    network = mobilenet_v2(Architecture.model_validate(MANIFEST["architecture"]))
    network.load_state_dict(load_file(BUNDLE / "checkpoint.safetensors"))
    return Preprocessed(network, MANIFEST["input"]["mean"], MANIFEST["input"]["std"]).eval()


torch.set_num_threads(1)
model = load_model()
app = FastAPI()


@app.post("/predict")
async def predict(file: UploadFile) -> dict:
    image = torch.tensor(decode(await file.read()))
    with torch.inference_mode():
        return answer(model(image).numpy())
