"""Several models in one service, and models that are replaced over HTTP."""

import asyncio
import json
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from app.bundle.names import REPORT, REPORT_TEXT
from app.bundle.reader import Bundle
from app.bundle.report import Report
from app.client import AsyncClient, ProblemError
from app.inference import repository
from app.inference.sessions import Images, Outputs, Session
from app.main import create_app
from app.settings import Settings
from tests.app.forged import forge
from tests.app.problems import assert_problem
from tests.conftest import BUNDLE, SMALL_BUNDLE

ADMIN = {"Authorization": "Bearer admin"}
LOAD = "/v2/repository/models/cifar10/load"
MakeClient = Callable[..., TestClient]


def running(default: tuple[Bundle, Session], **settings: object) -> TestClient:
    app = create_app(Settings(model_dir=BUNDLE, inference_threads=1, **settings), default, on_death=lambda: None)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def several(loaded: tuple[Bundle, Session]) -> Iterator[TestClient]:
    """A service with the default model and the small one. Its tests load nothing."""
    with running(loaded, model_dirs=f"small={SMALL_BUNDLE}", admin_keys="admin") as client:
        yield client


def small(name: str) -> Any:
    return json.loads((SMALL_BUNDLE / name).read_text())


class TestSeveralModels:
    def test_each_answers_with_its_own_name_and_version(self, several: TestClient, cat: bytes) -> None:
        default = several.post("/predict", content=cat).json()["model"]
        assert default == several.post("/predict?model=cifar10", content=cat).json()["model"]
        assert default["name"] == "mobilenet_v2_cifar10"
        expected = {"name": "mobilenet_v2_cifar10_small", "version": small("bundle.json")["version"]}
        assert several.post("/predict?model=small", content=cat).json()["model"] == expected
        batch = several.post("/predict/batch?model=small", files=[("files", ("cat.png", cat))])
        assert batch.json()["model"] == expected
        assert several.get("/model?model=small").json()["digest"] == small("bundle.json")["digest"]

    def test_each_has_its_own_report(self, several: TestClient) -> None:
        assert several.get("/metrics/report?model=small").json() == small("report.json")
        text = several.get("/metrics/report?model=small", headers={"Accept": "text/plain"}).text
        assert text == (SMALL_BUNDLE / REPORT_TEXT).read_text() != (BUNDLE / REPORT_TEXT).read_text()
        picture = several.get("/metrics/report/reliability.png?model=small").content
        assert picture == (SMALL_BUNDLE / "reliability.png").read_bytes()
        assert several.get("/metrics/report").json() != small("report.json")

    def test_each_explains_with_its_own_network(self, several: TestClient, cat: bytes) -> None:
        default, other = (several.post(f"/explain{query}", content=cat) for query in ("", "?model=small"))
        assert default.status_code == other.status_code == 200
        assert default.content != other.content

    def test_each_has_two_names_in_v2(self, several: TestClient, cat: bytes) -> None:
        names = ["cifar10", "cifar10_image", "small", "small_image"]
        assert several.get("/v2/models").json() == {"models": names}
        assert [entry["name"] for entry in several.post("/v2/repository/index").json()] == names
        raw = {"content": cat, "headers": {"Inference-Header-Content-Length": "0"}}
        answer = several.post("/v2/models/small_image/infer", **raw)
        assert json.loads(answer.content[: int(answer.headers["inference-header-content-length"])])["model_name"] == (
            "small_image"
        )
        assert answer.content[-40:] != several.post("/v2/models/cifar10_image/infer", **raw).content[-40:]
        (stats,) = several.get("/v2/models/small_image/stats").json()["model_stats"]
        assert (stats["name"], stats["inference_count"]) == ("small_image", 1)

    def test_the_metrics_have_the_models_names(self, several: TestClient, cat: bytes) -> None:
        several.post("/predict?model=small", content=cat)
        text = several.get("/metrics").text
        assert (
            f'model_info{{model="small",name="mobilenet_v2_cifar10_small",version="{small("bundle.json")["version"]}"}}'
            in text
        )
        for series in (
            'predict_stage_seconds_count{model="small",stage="inference"}',
            'predict_batch_images_count{model="small"}',
            'predictions_total{label="cat",model="small"}',
            'prediction_confidence_count{model="small"}',
            'prediction_abstentions_total{model="small"}',
            'prediction_ood_score_count{model="small"}',
            'prediction_drift{model="small",of="labels"} NaN',
            'prediction_drift{model="cifar10",of="labels"} NaN',
        ):
            assert series in text

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            *(("GET", path) for path in ("/model", "/metrics/report", "/metrics/report/reliability.png")),
            *(("POST", path) for path in ("/predict", "/predict/batch", "/explain")),
        ],
    )
    @pytest.mark.parametrize("name", ["tiny", "", "small_image", "x" * 999])
    def test_an_unknown_name_is_answered_with_those_that_there_are(
        self, several: TestClient, method: str, path: str, name: str
    ) -> None:
        document = assert_problem(several.request(method, f"{path}?model={name}"), 422, "invalid_parameter")
        assert document["detail"] == f"model: there is no {name[:40]!r}: there are cifar10, small"

    def test_an_unknown_name_in_v2_is_404(self, several: TestClient) -> None:
        for method, path in (("GET", "/v2/models/tiny"), ("POST", "/v2/models/tiny/infer")):
            document = assert_problem(several.request(method, path), 404, "not_found")
            assert (
                document["detail"] == "there is no model 'tiny': there are cifar10, cifar10_image, small, small_image"
            )

    def test_openapi_names_the_models(self, several: TestClient) -> None:
        paths = several.get("/openapi.json").json()["paths"]
        (asked,) = [one for one in paths["/predict"]["post"]["parameters"] if one["name"] == "model"]
        assert asked["schema"]["anyOf"][0]["enum"] == ["cifar10", "small"]

    def test_the_queue_is_that_of_all_models(self, several: TestClient, cat: bytes) -> None:
        with several.app.state.service.places.reserve(256):
            for name in ("cifar10", "small"):
                assert_problem(several.post(f"/predict?model={name}", content=cat), 429, "overloaded")

    def test_an_engine_that_dies_makes_the_service_unready(self, loaded: tuple[Bundle, Session]) -> None:
        with running(loaded, model_dirs=f"small={SMALL_BUNDLE}") as client:
            model = client.app.state.service.repository.models["small"]
            model.classifier.engine._die([])
            assert client.app.state.service.repository.died
            assert_problem(client.get("/readyz"), 503, "unavailable")
            states = {entry["name"]: entry["state"] for entry in client.post("/v2/repository/index").json()}
            assert states == {name: "READY" for name in ("cifar10", "cifar10_image")} | {
                name: "UNAVAILABLE" for name in ("small", "small_image")
            }


async def test_the_client_asks_for_a_model(several: TestClient, cat: bytes) -> None:
    async with AsyncClient("http://test", transport=httpx.ASGITransport(several.app)) as client:
        version = small("bundle.json")["version"]
        assert (await client.model(model="small")).version == version
        assert await client.report(model="small") == Report.model_validate(small("report.json"))
        assert (await client.predict(cat, model="small")).model.version == version
        assert (await client.predict_batch([cat], model="small")).model.version == version
        assert (await client.explain(cat, model="small")) != (await client.explain(cat))
        with pytest.raises(ProblemError, match="there are cifar10, small"):
            await client.predict(cat, model="tiny")


def test_with_one_model_the_metrics_do_not_name_it_and_its_name_is_known(client: TestClient, cat: bytes) -> None:
    assert client.post("/predict?model=cifar10", content=cat).status_code == 200
    assert_problem(client.post("/predict?model=small", content=cat), 422, "invalid_parameter")
    assert 'model="' not in client.get("/metrics").text


class TestLoading:
    @pytest.fixture
    def served(self, loaded: tuple[Bundle, Session], tmp_path: Path) -> Iterator[TestClient]:
        """A service whose folder is a link to the default bundle."""
        link = tmp_path / "current"
        link.symlink_to(BUNDLE)
        app = create_app(Settings(model_dir=link, inference_threads=1, admin_keys="admin", api_keys="user"), loaded)
        with TestClient(app, headers={"Authorization": "Bearer user"}) as client:
            client.folder = link
            yield client

    @pytest.fixture
    def renamed(self, tmp_path: Path) -> Path:
        """The shipped bundle with other names for its classes, and no drift reference."""
        report = json.loads((BUNDLE / REPORT).read_bytes())
        for scores in report["per_class"]:
            scores["label"] = scores["label"].upper()
        return forge(
            tmp_path / "renamed",
            {REPORT: json.dumps(report).encode()},
            classes=[scores["label"] for scores in report["per_class"]],
            version="9.9.9",
            reference=None,
        )

    def test_everything_follows_the_new_bundle(
        self, served: TestClient, renamed: Path, cat: bytes, cat_label: str
    ) -> None:
        assert 'of="labels"' in served.get("/metrics").text
        before = served.get("/openapi.json").content
        lead(served.folder, renamed)
        answer = served.post("/v2/repository/models/cifar10_image/load", headers=ADMIN)
        manifest = json.loads((renamed / "bundle.json").read_text())
        expected = {key: manifest[key] for key in ("version", "digest")}
        assert answer.json() == {"name": "cifar10_image", "bundle": "mobilenet_v2_cifar10", **expected}
        prediction = served.post("/predict", content=cat).json()
        assert prediction["predictions"][0]["label"] == cat_label.upper()
        assert prediction["model"]["version"] == served.get("/model").json()["version"] == "9.9.9"
        assert served.get("/metrics/report").json()["per_class"][3]["label"] == "CAT"
        best = {"name": "probabilities", "parameters": {"classification": 1}}
        image = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}
        named = served.post("/v2/models/cifar10/infer", json={"inputs": [image], "outputs": [best]}).json()
        assert named["outputs"][0]["data"][0].split(":")[-1].isupper()
        text = served.get("/metrics").text
        assert 'version="9.9.9"' in text and text.count("model_info{") == 1
        assert 'predictions_total{label="CAT"}' in text and 'predictions_total{label="cat"}' not in text
        assert served.get("/openapi.json").content == before  # as many classes, and the same levels

    def test_the_first_bundle_is_freed_like_the_later_ones(
        self, loaded: tuple[Bundle, Session], cat: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class First:
            """A session of its own, which nothing but the application keeps."""

            def run(self, images: Images, maps: bool = False) -> Outputs:
                return loaded[1].run(images, maps)

            def release_memory(self) -> None:
                pass

        first = First()
        freed = weakref.ref(first)
        app = create_app(Settings(model_dir=BUNDLE, inference_threads=1, admin_keys="admin"), (loaded[0], first))
        del first
        monkeypatch.setattr(repository, "load_session", lambda _: loaded)
        with TestClient(app) as client:
            assert client.post("/predict", content=cat).status_code == 200
            assert freed() is not None
            assert client.post(LOAD, headers=ADMIN).status_code == 200
            while app.state.service.repository._ending:
                client.get("/livez")
            assert freed() is None

    def test_a_damaged_bundle_is_refused_and_the_index_says_why(self, served: TestClient, tmp_path: Path) -> None:
        lead(served.folder, forge(tmp_path / "bad", {REPORT: b"{}"}))
        refused = assert_problem(served.post(LOAD, headers=ADMIN), 409, "load_failed")
        assert refused["detail"].startswith("report.json: ")
        entries = served.post("/v2/repository/index").json()
        assert {(entry["state"], entry["reason"]) for entry in entries} == {("READY", refused["detail"])}
        assert served.get("/model").json()["name"] == "mobilenet_v2_cifar10"

    def test_only_an_admin_key_loads_and_it_opens_the_rest_too(self, served: TestClient) -> None:
        for headers in ({}, {"Authorization": "Bearer user"}, {"Authorization": "Bearer admin admin"}):
            assert_problem(served.post(LOAD, headers=headers), 401, "unauthorized")
            assert_problem(served.post(LOAD.replace("cifar10", "none"), headers=headers), 401, "unauthorized")
        assert served.get("/model", headers=ADMIN).status_code == 200
        assert_problem(served.get("/model", headers={"Authorization": "Bearer other"}), 401, "unauthorized")
        assert "model_repository" in served.get("/v2").json()["extensions"]

    @pytest.mark.parametrize("name", ["tiny", "..", "models%2Fcifar10", "%2Fetc", "http:%2F%2Fevil.example", "x" * 999])
    def test_a_request_names_a_model_and_no_place(self, several: TestClient, name: str) -> None:
        refused = several.post(f"/v2/repository/models/{name}/load", headers=ADMIN)
        assert refused.status_code in (404, 405), refused.text

    @pytest.mark.parametrize(
        "body",
        [
            b'{"parameters": {"config": "{}"}}',
            b'{"parameters": {"file:1/model.onnx": "AAAA"}}',
            *(b"[1]", b"hello", b'{"path": "/etc"}', b"[" * 4000, b"\xff"),
        ],
    )
    def test_a_load_has_no_parameters(self, several: TestClient, body: bytes) -> None:
        assert_problem(several.post(LOAD, headers=ADMIN, content=body), 422, "invalid_parameter")

    def test_without_admin_keys_loading_is_off(self, client: TestClient) -> None:
        assert "ADMIN_KEYS" in assert_problem(client.post(LOAD, headers=ADMIN), 404, "not_found")["detail"]
        assert "model_repository" not in client.get("/v2").json()["extensions"]


@pytest.fixture
async def service(loaded: tuple[Bundle, Session], tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(model_dir=BUNDLE, inference_threads=1, admin_keys="admin"), loaded)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(base_url="http://testserver", headers=ADMIN, transport=httpx.ASGITransport(app)) as client,
    ):
        client.app = app
        yield client


async def test_a_second_load_is_refused_while_one_runs(
    service: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    load_session = repository.load_session

    def slow(settings: Settings) -> tuple[Bundle, Session]:
        begun.set()
        assert go_on.wait(30)
        return load_session(settings)

    monkeypatch.setattr(repository, "load_session", slow)
    first = asyncio.create_task(service.post(LOAD))
    await asyncio.to_thread(begun.wait)
    assert_problem(await service.post(LOAD), 409, "load_in_progress")
    await service.app.state.service.load_all()  # as on SIGHUP: it says so in the log
    go_on.set()
    assert (await first).status_code == 200
    service.app.state.service.draining = True
    assert_problem(await service.post(LOAD), 503, "unavailable")


def lead(link: Path, folder: Path) -> None:
    """Let a link lead to another folder, in one step."""
    new = link.with_name("new")
    new.symlink_to(folder)
    os.replace(new, link)
