"""Generate a client from the OpenAPI document of a running service, and call the service with it.

    python -m tests.benchmarks.faults.generated_client --generator /path/to/openapi-python-client

Install openapi-python-client separately, in an environment of its own, which runs the client, too. Goal: every call is
answered, and the generator omits nothing but image/* bodies and image/png answers, which it does not know.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.app.server import serve
from tests.conftest import DATA

CALLS = """
import sys
from io import BytesIO
from client import Client
from client.api.model import model
from client.api.open_inference_protocol import v2_config, v2_infer, v2_models, v2_server, v2_statistics_of_version
from client.api.operations import livez, readyz
from client.api.predict import explain, predict, predict_batch
from client.api.report import report
from client.models import ExplainFilesBody, PredictBatchBody, PredictFilesBody, V2InferJsonBody
from client.types import File

def image():
    return File(BytesIO(content), "cat.png")

url, path = sys.argv[1:]
content = open(path, "rb").read()
service = Client(base_url=url)
answer = predict.sync(client=service, body=PredictFilesBody(file=image()), coverage=0.95, top_k=2)
assert answer.predictions[0].label == "cat" and answer.prediction_set.coverage == 0.95
assert predict.sync(client=service, body=image()).predictions == predict.sync(client=service, body=image()).predictions
assert predict.sync(client=service, body=File(BytesIO(b"no image"))).code == "unsupported_media_type"
assert len(predict_batch.sync(client=service, body=PredictBatchBody(files=[image(), image()])).results) == 2
assert explain.sync_detailed(client=service, body=ExplainFilesBody(file=image())).headers["x-class-label"] == "cat"
assert model.sync(client=service).name == answer.model.name
assert report.sync(client=service).accuracy.value > 0.9
assert livez.sync(client=service).status == "alive" and readyz.sync(client=service).status == "ready"
assert v2_server.sync(client=service).name == "cifar10-classifier"
assert v2_models.sync(client=service).models == ["cifar10", "cifar10_image"]
assert v2_config.sync("cifar10", client=service).input_[0].dims == [32, 32, 3]
tensor = {"name": "images", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [0] * 3072}
inferred = v2_infer.sync("cifar10", client=service, body=V2InferJsonBody.from_dict({"inputs": [tensor]}))
assert len(inferred.outputs[0].data) == 10
assert v2_statistics_of_version.sync("cifar10", "1", client=service).model_stats[0].inference_count == 1
print("every call was answered")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", type=Path, required=True)
    options = parser.parse_args()
    generator = options.generator.absolute()
    with serve(LOG_LEVEL="error") as (_, client), tempfile.TemporaryDirectory() as folder:
        document = str(client.base_url.join("/openapi.json"))
        command = [generator, "generate", "--url", document, "--output-path", "client", "--meta", "none"]
        subprocess.run(command, cwd=folder, check=True)
        calls = [generator.parent / "python", "-W", "ignore", "-c", CALLS, str(client.base_url), DATA / "cat.png"]
        done = subprocess.run(calls, cwd=folder)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
