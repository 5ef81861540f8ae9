"""Earlier versions: requests of their clients are answered today as they were, from old bundles, too.

tests/app/former_answers.json has answers that the service gave at commit 418c8ec with the first bundle, 1.0.0, and at
31b53bf with 1.4.0. Answers may have more today, never less, and nothing may have another type.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from app.api.schemas import Model
from app.client.answers import Answer, parsed
from app.inference.sessions import load_session
from app.main import create_app
from app.settings import Settings
from tests.app.forged import former
from tests.conftest import BUNDLE, DATA

CAT, OTHER = (DATA / "cat.png").read_bytes(), b"no image"
FILE, FAULTY = ("cat.png", CAT, "image/png"), ("no.png", OTHER, "image/png")
TENSOR = {"name": "images", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [0] * 3072}
REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a form": ("POST", "/predict?top_k=2", {"files": {"file": FILE}}),
    "an image": ("POST", "/predict", {"content": CAT, "headers": {"Content-Type": "image/png"}}),
    "a coverage": ("POST", "/predict?coverage=0.95", {"files": {"file": FILE}}),
    "no image": ("POST", "/predict", {"content": OTHER, "headers": {"Content-Type": "image/png"}}),
    "nothing": ("POST", "/predict", {}),
    "too many classes": ("POST", "/predict?top_k=11", {"content": CAT}),
    "a batch": ("POST", "/predict/batch", {"files": [("files", FILE), ("files", FILE)]}),
    "a faulty batch": ("POST", "/predict/batch", {"files": [("files", FILE), ("files", FAULTY)]}),
    "a part of a batch": ("POST", "/predict/batch?partial=true", {"files": [("files", FILE), ("files", FAULTY)]}),
    "an explanation": ("POST", "/explain", {"files": {"file": FILE}}),
    "the model": ("GET", "/model", {}),
    "the report": ("GET", "/metrics/report", {}),
    "liveness": ("GET", "/livez", {}),
    "readiness": ("GET", "/readyz", {}),
    "the protocol's server": ("GET", "/v2", {}),
    "the protocol's readiness": ("GET", "/v2/health/ready", {}),
    "the protocol's model": ("GET", "/v2/models/cifar10", {}),
    "an inference": ("POST", "/v2/models/cifar10/infer", {"json": {"inputs": [TENSOR], "id": "a"}}),
    "an unknown model": ("POST", "/v2/models/nothing/infer", {"json": {"inputs": [TENSOR]}}),
    "the protocol's index": ("POST", "/v2/repository/index", {}),
}
ANSWERS = Path(__file__).with_name("former_answers.json")
RECORDED: dict[str, dict[str, dict[str, Any]]] = json.loads(ANSWERS.read_text())


@pytest.fixture(scope="module", params=["former", "shipped"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Today's service, with a bundle as it was before 1.5.0, and with today's."""
    bundle = BUNDLE if request.param == "shipped" else former(tmp_path_factory.mktemp("former") / "bundle")
    settings = Settings(_env_file=None, model_dir=bundle, inference_threads=1, deadline_seconds=60)
    with TestClient(create_app(settings, load_session(settings), on_death=lambda: None)) as client:
        yield client


def missing(before: Any, now: Any, place: str = "") -> list[str]:
    """What an answer had before and does not have now, as paths; the items of a list are alike."""
    if isinstance(before, dict) and isinstance(now, dict):
        gone = [f"{place}.{key}" for key in before if key not in now]
        return gone + [one for key in before if key in now for one in missing(before[key], now[key], f"{place}.{key}")]
    if isinstance(before, list) and isinstance(now, list):
        return missing(before[0], now[0], f"{place}[]") if before and now else [place] * (len(before) > len(now))
    numbers = isinstance(before, int | float) and isinstance(now, int | float)
    return [] if before is None or numbers or type(before) is type(now) else [place]


@pytest.mark.parametrize(
    ("version", "name"), [(version, name) for version, answers in RECORDED.items() for name in answers]
)
def test_an_old_request_is_answered_as_it_was(client: TestClient, version: str, name: str) -> None:
    method, path, body = REQUESTS[name]
    recorded, answer = RECORDED[version][name], client.request(method, path, **body)
    assert (answer.status_code, answer.headers["content-type"]) == (recorded["status"], recorded["type"])
    if "body" in recorded:
        before, now = recorded["body"], answer.json()
        assert missing(before, now) == []
        assert isinstance(now, list) or now.get("code") == before.get("code")
    if name in ("a form", "an image", "a coverage"):
        assert now["predictions"][0]["label"] == before["predictions"][0]["label"] == "cat"


def test_a_client_reads_answers_of_later_services(client: TestClient) -> None:
    """`model()` of clients before this test refused what was added to the manifest."""
    now = client.get("/model").json()
    later = now | {"later": 1, "architecture": now["architecture"] | {"later": [1]}}
    answer = Answer(200, "OK", httpx.Headers(), json.dumps(later).encode())
    assert parsed(Model)(answer).model_dump(mode="json") == now


def test_every_request_was_recorded() -> None:
    assert {name for answers in RECORDED.values() for name in answers} == set(REQUESTS)


def test_the_comparison_notices_what_is_gone() -> None:
    before = {"a": 1, "b": [{"c": "x", "d": None}], "e": {"f": 1.5}, "g": [1]}
    now = {"a": 1.0, "b": [{"c": 1, "d": "x"}], "e": {}, "g": [], "h": 1}
    assert missing(before, now) == [".b[].c", ".e.f", ".g"]
    assert missing(before, before) == []
