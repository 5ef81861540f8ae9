import email.utils
import importlib
import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app.api.schemas import ImageFailure, PredictResponse
from app.bundle.reader import Bundle
from app.client import (
    AnswerTimeoutError,
    AsyncClient,
    Client,
    ClientError,
    EmptyBatchError,
    Explanation,
    InvalidAnswerError,
    NoAnswerError,
    ProblemError,
)
from app.inference.answers import ImageResult
from app.main import create_app
from app.settings import Settings
from tests.app.server import serve
from tests.conftest import BUNDLE, DATA, ROOT

CAT = DATA / "cat.png"
PNG = b"\x89PNG\r\n\x1a\nand so on"
GOOD = {
    "model": {"name": "m", "version": "1"},
    "predictions": [{"label": "cat", "class_id": 3, "probability": 0.5}],
    "views": 1,
    "timing_ms": {"decode": 1, "queue": 1, "inference": 1, "total": 3},
}


def busy(status: int = 429, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers, json={"code": "overloaded", "detail": "busy"})


def good() -> httpx.Response:
    return httpx.Response(200, json=GOOD)


class Service:
    """Gives the answers one after the other; keeps the requests, and the pauses between them."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.bodies.append(request.read())
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def answer(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return self(request)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def client(self, **options: object) -> Client:
        return Client("http://test", transport=httpx.MockTransport(self), sleep=self.pauses.append, **options)

    def async_client(self, **options: object) -> AsyncClient:
        return AsyncClient("http://test", transport=httpx.MockTransport(self.answer), sleep=self.sleep, **options)


async def predict(service: Service, kind: str, **options: object) -> PredictResponse:
    """The same call with either client."""
    if kind == "sync":
        with service.client(**options) as client:
            return client.predict(b"image")
    async with service.async_client(**options) as client:
        return await client.predict(b"image")


both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
async def test_a_429_is_retried_after_its_retry_after(kind: str) -> None:
    service = Service(busy(**{"Retry-After": "7"}), busy(503, **{"Retry-After": "0"}), busy(), good())
    answer = await predict(service, kind)
    assert answer.predictions[0].label == "cat"
    assert service.pauses == [7, 0, 2]  # the third without a word: 0.5 s, doubled twice
    assert service.bodies == [b"image"] * 4


@both
async def test_retrying_a_busy_service_ends(kind: str) -> None:
    service = Service(*(busy(**{"Retry-After": "1"}) for _ in range(4)))
    with pytest.raises(ProblemError) as caught:
        await predict(service, kind)
    assert caught.value.status == 429
    assert service.pauses == [1, 1, 1]
    unwilling = Service(busy())
    with pytest.raises(ProblemError):
        await predict(unwilling, kind, retries=0)
    assert unwilling.pauses == []


@both
async def test_a_long_retry_after_is_not_waited_for(kind: str) -> None:
    service = Service(busy(503, **{"Retry-After": "3600"}))
    with pytest.raises(ProblemError):
        await predict(service, kind)
    assert service.pauses == []


@both
@pytest.mark.parametrize(
    "error", [httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.RemoteProtocolError]
)
async def test_a_broken_connection_is_retried(kind: str, error: type[httpx.TransportError]) -> None:
    service = Service(error("broken"), good())
    assert (await predict(service, kind)).views == 1
    assert service.pauses == [0.5]
    broken = Service(*(error("broken") for _ in range(4)))
    with pytest.raises(NoAnswerError, match="broken") as caught:
        await predict(broken, kind)
    assert isinstance(caught.value.__cause__, error)
    assert caught.value.request.url == "http://test/predict?top_k=5"


@both
@pytest.mark.parametrize("status", [500, 502])
async def test_gateway_errors_of_a_proxy_are_retried(kind: str, status: int) -> None:
    service = Service(httpx.Response(status, text="Bad gateway"), good())
    assert (await predict(service, kind)).views == 1
    assert service.pauses == [0.5]


def test_an_error_of_the_service_is_not_retried() -> None:
    problem = httpx.Response(500, json={"code": "internal"}, headers={"Content-Type": "application/problem+json"})
    with pytest.raises(ProblemError, match="500 internal"):
        Service(problem).client().predict(b"image")


@both
@pytest.mark.parametrize("error", [httpx.ReadTimeout, httpx.WriteTimeout, httpx.UnsupportedProtocol])
async def test_errors_that_a_retry_cannot_fix_are_raised_at_once(kind: str, error: type[httpx.TransportError]) -> None:
    service = Service(error("slow"))
    with pytest.raises(NoAnswerError) as caught:
        await predict(service, kind)
    assert isinstance(caught.value, AnswerTimeoutError) == issubclass(error, httpx.TimeoutException)
    assert service.pauses == []


def test_a_program_that_catches_httpx_s_errors_still_does() -> None:
    assert issubclass(NoAnswerError, httpx.TransportError)
    assert issubclass(AnswerTimeoutError, httpx.TimeoutException)
    for kind in (ProblemError, NoAnswerError, AnswerTimeoutError, InvalidAnswerError):
        assert issubclass(kind, ClientError)


def test_retry_after_may_be_a_date() -> None:
    service = Service(
        busy(**{"Retry-After": email.utils.formatdate(time.time() + 30, usegmt=True)}),
        busy(**{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        busy(**{"Retry-After": "soon"}),
        busy(**{"Retry-After": f"Wed, 21 Oct {10**30} 07:28:00 GMT"}),
        busy(**{"Retry-After": "Mon, 01 Jan 0001 00:00:00 -0000"}),
        good(),
    )
    service.client(retries=5).predict(b"image")
    first, *rest = service.pauses
    assert 0 < first <= 30
    assert rest == [0, 2, 4, 0]
    with pytest.raises(ProblemError):
        Service(busy(**{"Retry-After": "9" * 5000})).client().predict(b"image")


@both
async def test_an_error_carries_the_problem_document(kind: str) -> None:
    document = {
        "type": "/problems/undecodable_image",
        "title": "The image cannot be decoded",
        "status": 422,
        "detail": "the PNG is cut short or corrupt",
        "code": "undecodable_image",
        "instance": "abc",
    }
    with pytest.raises(ProblemError) as caught:
        await predict(Service(httpx.Response(422, json=document)), kind)
    error = caught.value
    assert (error.status, error.code, error.instance) == (422, "undecodable_image", "abc")
    assert (error.title, error.detail) == (document["title"], document["detail"])
    assert error.document == document
    assert str(error) == "422 undecodable_image: the PNG is cut short or corrupt (request abc)"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("content", [b"<h1>Bad gateway</h1>", b"[]", b'{"message": "no"}', b""])
def test_an_error_of_a_proxy_is_reported(content: bytes) -> None:
    with pytest.raises(ProblemError) as caught:
        Service(httpx.Response(403, content=content)).client().predict(b"image")
    assert (caught.value.status, caught.value.code, caught.value.title) == (403, "http_error", "Forbidden")
    assert caught.value.detail == content.decode()


def sent(image: object) -> bytes:
    service = Service(good())
    service.client().predict(image)
    return service.bodies[0]


@pytest.mark.parametrize("image", [CAT, str(CAT), *(kind(CAT.read_bytes()) for kind in (bytes, bytearray, memoryview))])
def test_paths_and_bytes_are_sent_as_they_are(image: object) -> None:
    assert sent(image) == CAT.read_bytes()


def test_files_are_read_from_their_beginning() -> None:
    buffer = io.BytesIO()
    buffer.write(CAT.read_bytes())  # the buffer is at its end now
    assert sent(buffer) == CAT.read_bytes()
    with CAT.open("rb") as file:
        assert sent(file) == sent(file) == CAT.read_bytes()
    ours, theirs = os.pipe()
    os.write(theirs, b"image")
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:  # it has no beginning to return to
        assert sent(pipe) == b"image"


def test_a_text_file_is_refused() -> None:
    with CAT.open(encoding="latin-1") as file, pytest.raises(TypeError, match='"rb"'):
        sent(file)


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4)], ids=["RGB", "grey"])
def test_arrays_are_sent_as_png(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for given in (array, array[::-1, ::2], np.asfortranarray(array)):
        with Image.open(io.BytesIO(sent(given))) as received:
            assert received.format == "PNG"
            np.testing.assert_array_equal(np.asarray(received), given)


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros((5, 4, 3), np.float32), "not float32 [5, 4, 3]"),
        (np.zeros((5, 4), bool), "not bool [5, 4]"),
        (np.zeros((1, 5, 4, 3), np.uint8), "not uint8 [1, 5, 4, 3]"),
        (np.zeros((3, 5, 4), np.uint8), "not uint8 [3, 5, 4]"),
        (np.zeros((5, 4, 4), np.uint8), "not uint8 [5, 4, 4]"),
        (np.zeros((0, 4), np.uint8), "not uint8 [0, 4]"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, named: str) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\]") as caught:
        sent(array)
    assert str(caught.value).endswith(named)


def test_without_pillow_an_array_is_refused_by_a_sentence_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        sent(np.zeros((5, 4, 3), np.uint8))
    assert sent(CAT) == CAT.read_bytes()


@pytest.mark.parametrize("image", [None, 7, [1, 2], object()])
def test_what_is_no_image_is_refused(image: object) -> None:
    with pytest.raises(TypeError, match=f"not {type(image).__name__}"):
        sent(image)


@both
async def test_an_empty_batch_is_refused_and_not_sent(kind: str) -> None:
    service = Service()
    with pytest.raises(EmptyBatchError, match="no image") as caught:
        if kind == "sync":
            service.client().predict_batch(iter(()))
        else:
            await service.async_client().predict_batch([])
    assert isinstance(caught.value, ClientError) and isinstance(caught.value, ValueError)
    assert service.requests == []


@both
@pytest.mark.parametrize(
    "image",
    [
        *("a.png", Path("a.png"), b"image", bytearray(b"image"), memoryview(b"image"), io.BytesIO(b"image")),
        *(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8), Image.new("RGB", (5, 4))),
    ],
    ids=lambda image: type(image).__name__,
)
async def test_one_image_in_place_of_a_batch_is_refused_and_not_sent(kind: str, image: Any) -> None:
    service = Service()
    with pytest.raises(TypeError, match=rf"^a batch is a list of images, not one image \({type(image).__name__}\)"):
        if kind == "sync":
            service.client().predict_batch(image)
        else:
            await service.async_client().predict_batch(image)
    assert service.requests == []


@pytest.mark.parametrize("images", [(b"one", b"two"), np.zeros((2, 8, 9, 3), np.uint8), np.zeros((2, 8, 9), np.uint8)])
def test_several_images_are_a_batch_however_they_come(images: Any) -> None:
    service = Service(httpx.Response(200, json={"model": GOOD["model"], "results": [], "timing_ms": GOOD["timing_ms"]}))
    service.client().predict_batch(images)
    assert service.bodies[0].count(b'name="files"') == 2


@pytest.mark.parametrize("make", [Client, AsyncClient])
@pytest.mark.parametrize("url", ["localhost:8000", "127.0.0.1:8000", "example.org", "localhost:8000/prefix"])
def test_a_url_without_its_scheme_is_refused_at_once(make: type[Client | AsyncClient], url: str) -> None:
    with pytest.raises(ValueError, match=rf'such as "http://{re.escape(url)}", not "{re.escape(url)}"$'):
        make(url)


@pytest.mark.parametrize("url", ["", "ftp://example.org", "//example.org", "http://"])
def test_a_url_that_is_no_service_s_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=rf'http:// or https:// and a host, not "{url}"$'):
        Client(url)


def proxies(client: Client | AsyncClient) -> bool:
    """Whether a request of the client goes to a proxy."""
    http = client._http
    return http._transport_for_url(http.base_url) is not http._transport


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    make: type[Client | AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.2:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:8000", "a.localhost", "127.1.2.3", "[::1]:8000", "0.0.0.0"):
        assert not proxies(make(f"http://{host}/prefix")), host
    for url in ("http://10.0.0.1", "http://localhost.example.org", "http://example.org", "https://[2001:db8::1]"):
        assert proxies(make(url)), url
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.2:9")  # httpx cannot speak to it without another package
    assert not proxies(make("http://localhost:8000"))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "F", "I;16"])
def test_pil_images_are_sent_as_png(mode: str) -> None:
    with Image.open(CAT) as picture:
        image = Image.new(mode, (5, 4)) if mode == "I;16" else picture.convert(mode)
    with Image.open(io.BytesIO(sent(image))) as received:
        assert (received.format, received.size) == ("PNG", image.size)
        if mode in ("RGB", "L", "RGBA", "LA"):
            assert received.tobytes() == image.tobytes()


def test_a_pil_image_is_sent_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "photo.jpg", exif=exif)
    with Image.open(tmp_path / "photo.jpg") as image, Image.open(io.BytesIO(sent(image))) as received:
        assert received.size == (20, 40)


def test_parameters_are_sent() -> None:
    service = Service(good())
    service.client(api_key="secret").predict(b"image", top_k=3)
    (request,) = service.requests
    assert request.url == "http://test/predict?top_k=3"
    assert request.headers["authorization"] == "Bearer secret"
    assert "authorization" not in Service(good()).client()._http.headers


def test_parameters_that_are_not_given_are_not_sent() -> None:
    service = Service(good(), good())
    client = service.client()
    client.predict(b"image", coverage=0.95)
    assert service.requests[0].url == "http://test/predict?top_k=5&coverage=0.95"
    assert client.predict(b"image").prediction_set is None  # an older service does not speak of it


def test_an_explanation_has_its_class_and_picture() -> None:
    headers = {"X-Class-Id": "3", "X-Class-Label": "big%20c%C3%A4t", "X-Class-Probability": "0.25"}
    service = Service(*(httpx.Response(200, content=PNG, headers=headers) for _ in range(2)))
    client = service.client()
    assert client.explain(b"image", class_id=0) == Explanation(PNG, 3, "big cät", 0.25)
    client.explain(b"image")
    assert [str(request.url) for request in service.requests] == [
        "http://test/explain?class_id=0",
        "http://test/explain",
    ]


def test_a_service_under_a_path_prefix_is_reached(cat: bytes) -> None:
    service = Service(good())
    Client("http://test/cifar/", transport=httpx.MockTransport(service)).predict(cat)
    assert service.requests[0].url.path == "/cifar/predict"


async def test_every_call_works_against_the_application(
    loaded: tuple, cat: bytes, cat_label: str, tmp_path: Path
) -> None:
    app = create_app(Settings(model_dir=BUNDLE, inference_threads=1, api_keys="secret"), loaded)
    bundle: Bundle = loaded[0]
    async with (
        app.router.lifespan_context(app),
        AsyncClient("http://test", "secret", transport=httpx.ASGITransport(app)) as client,
        AsyncClient("http://test", transport=httpx.ASGITransport(app)) as stranger,
    ):
        answer = await client.predict(CAT, top_k=1, coverage=0.95)
        assert answer.predictions[0].label == cat_label
        assert answer.prediction_set.coverage == 0.95
        assert answer.abstain is (answer.ood_score > answer.ood_threshold)
        explanation = await client.explain(CAT)
        assert (explanation.label, explanation.picture[1:4]) == (cat_label, b"PNG")
        assert explanation.probability == pytest.approx(answer.predictions[0].probability, abs=2e-6)
        assert await client.report() == bundle.report
        model = await client.model()
        assert (model.version, model.digest) == (bundle.manifest.version, bundle.manifest.digest)
        batch = await client.predict_batch([CAT, cat, Image.open(CAT)], top_k=2, coverage=0.95)
        assert [len(result.predictions) for result in batch.results] == [2] * 3
        assert [result.prediction_set for result in batch.results] == [answer.prediction_set] * 3
        with pytest.raises(ProblemError) as caught:
            await client.predict_batch([CAT, b"hello"])
        assert caught.value.document["errors"][0]["filename"] == "1"
        odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
        odd.write_text("no image, and its name is no Unicode")
        with pytest.raises(ProblemError) as caught:
            await client.predict_batch([odd])
        assert caught.value.document["errors"][0]["filename"] == "\\udcff.png"
        first, second = (await client.predict_batch([CAT, b"hello"], partial=True)).results
        assert isinstance(first, ImageResult)
        assert isinstance(second, ImageFailure)
        assert second.error.code == "unsupported_media_type"
        with pytest.raises(ProblemError, match="401 unauthorized"):
            await stranger.predict(cat)


def test_answers_about_a_thousand_classes_are_read(loaded: tuple) -> None:
    classes, report = range(1000), loaded[0].report
    levels = [
        level.model_copy(update={"class_coverage": [0.9876] * 1000, "sizes": [3] * 1000})
        for level in report.conformal.levels
    ]
    large = report.model_copy(
        update={
            "per_class": [
                report.per_class[0].model_copy(update={"label": f"class {one}", "class_id": one}) for one in classes
            ],
            "confusion_matrix": [[12] * 1000 for _ in classes],
            "conformal": report.conformal.model_copy(update={"levels": levels}),
        }
    )
    result = {
        "predictions": [{"label": f"class {one}", "class_id": one, "probability": 0.001} for one in classes],
        "prediction_set": {"coverage": 0.95, "labels": [f"class {one}" for one in classes]},
        "views": 3,
    }
    timing = dict.fromkeys(("decode", "queue", "inference", "total"), 1.0)
    batch = {"results": [result] * 32, "model": {"name": "own", "version": "1"}, "timing_ms": timing}
    answers = {"/metrics/report": large.model_dump_json(), "/predict/batch": json.dumps(batch)}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=answers[request.url.path]))
    with Client("http://test", transport=transport) as client:
        assert client.report() == large
        assert len(client.predict_batch([b"image"] * 32, top_k=1000).results) == 32
        with pytest.raises(InvalidAnswerError, match="JSON values"):
            client.predict_batch([b"image"], top_k=5)


def test_every_call_works_against_a_server(cat_label: str) -> None:
    with serve() as (_, http), Client(str(http.base_url)) as client:
        assert client.predict(CAT).predictions[0].label == cat_label
        assert len(client.predict_batch([CAT] * 3).results) == 3
        assert client.report().n > 0
        assert len(client.model().classes) == 10


def test_a_server_that_does_not_listen_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    pauses: list[float] = []
    with Client(f"http://127.0.0.1:{port}", sleep=pauses.append) as client, pytest.raises(NoAnswerError):
        client.model()
    assert pauses == [0.5, 1, 2]


WITH_HTTPX2 = """
import sys; sys.modules["httpx"] = None
import httpx2
from app.client import Client, NoAnswerError
answers = [httpx2.Response(503), httpx2.ReadError("broken"), httpx2.Response(200, content=sys.stdin.buffer.read())]
def answer(request):
    assert b"image" in request.read()
    if isinstance(given := answers.pop(0), Exception):
        raise given
    return given
with Client("http://test", transport=httpx2.MockTransport(answer), sleep=lambda _: None) as client:
    print(client.predict(b"image").predictions[0].label, issubclass(NoAnswerError, httpx2.TransportError))
"""


def test_httpx2_serves_where_httpx_is_not_installed() -> None:
    command, given = [sys.executable, "-c", WITH_HTTPX2], json.dumps(GOOD)
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("cat True\n", "")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    for name in ("app.client", "app.client.http"):
        monkeypatch.delitem(sys.modules, name)
    with (ROOT / "pyproject.toml").open("rb") as file:
        (needed,) = tomllib.load(file)["project"]["optional-dependencies"]["client"]
    with pytest.raises(ImportError) as caught:
        importlib.import_module("app.client")
    assert str(caught.value) == f"app.client needs httpx: pip install '{needed}'"
