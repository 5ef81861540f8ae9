"""Images of refused requests are freed at once. The garbage collector, which would free them late, is off here."""

import gc
from collections.abc import Callable, Iterator

import httpx
import pytest
from fastapi.testclient import TestClient

from app.api.uploads import Upload
from app.imaging.decode import EncodedImage
from app.imaging.job import Job

BAD = b"\xff\xd8\xff" + bytes(100_000)  # for a decoding process
KINDS = (Job, EncodedImage, Upload)
TINY = b"\xff\xd8\xff" + bytes(1_000)  # for a thread of the service


def v2(client: TestClient, content: bytes) -> httpx.Response:
    header = b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":%d}}]}'
    framed = len(content).to_bytes(4, "little") + content
    header %= len(framed)
    lengths = {"Inference-Header-Content-Length": str(len(header))}
    return client.post("/v2/models/cifar10_image/infer", content=header + framed, headers=lengths)


REQUESTS: dict[str, Callable[[TestClient, bytes], httpx.Response]] = {
    "raw body": lambda client, content: client.post("/predict", content=content),
    "form": lambda client, content: client.post("/predict", files={"file": content}),
    "wrong part": lambda client, content: client.post("/predict", files={"picture": content}),
    "batch": lambda client, content: client.post("/predict/batch", files=[("files", content)] * 2),
    "partial batch": lambda client, content: client.post("/predict/batch?partial=true", files=[("files", content)] * 2),
    "explain": lambda client, content: client.post("/explain", content=content),
    "v2": v2,
}


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # so that get_objects leaves out all that is there already
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def images() -> list[str]:
    """The kinds of the images that are in memory."""
    return [type(one).__name__ for one in gc.get_objects() if type(one) in KINDS]


@pytest.mark.parametrize("content", [BAD, TINY], ids=["process", "thread"])
def test_a_refused_image_is_freed_at_once(client: TestClient, content: bytes, without_collector: None) -> None:
    before = images()  # of other tests
    for name, request_with in REQUESTS.items():
        request_with(client, content)
        for _ in range(100):  # until the lane that decoded has let go of its image, too
            client.get("/livez")
            if images() == before:
                break
        assert images() == before, name
