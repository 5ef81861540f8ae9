import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from app.api.routes.page import FEEDBACK, PAGE, PROMISE
from app.inference.sessions import Outputs, Session
from app.main import create_app
from app.settings import Settings
from tests.app.problems import assert_problem
from tests.conftest import DATA

MakeClient = Callable[..., TestClient]


class Constant(Session):
    """Every image has these logits."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits.astype(np.float32)

    def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
        return Outputs(np.repeat(self.logits[None], len(images), 0), None, np.zeros(len(images), np.float32))


UNSURE = Constant(np.zeros(10))
SURE = Constant(100 * np.eye(10)[3])  # cat


def ask(client: TestClient, image: bytes, request_id: str, **query: Any) -> dict[str, Any]:
    answer = client.post("/predict", content=image, headers={"X-Request-ID": request_id}, params=query)
    assert answer.status_code == 200
    return answer.json()


def tell(client: TestClient, request_id: str, label: str) -> Any:
    return client.post("/feedback", json={"request_id": request_id, "label": label})


def kept(folder: Path) -> list[str]:
    return sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_labels_give_accuracy_and_coverage(make_client: MakeClient, tmp_path: Path, cat: bytes) -> None:
    client = make_client(SURE, feedback_dir=tmp_path, feedback_sample=0)
    for request_id, label in (("a", "cat"), ("b", "dog")):
        ask(client, cat, request_id, coverage=0.95)
        correct = label == "cat"
        answer = tell(client, request_id, label)
        assert (answer.status_code, answer.json()) == (200, {"correct": correct, "covered": correct})
    metrics = client.get("/metrics").text
    for sample in (
        'feedback_total{abstained="false",correct="true"} 1.0',
        'feedback_total{abstained="false",correct="false"} 1.0',
        'feedback_sets_total{coverage="0.95",covered="true"} 1.0',
        'feedback_sets_total{coverage="0.95",covered="false"} 1.0',
    ):
        assert sample in metrics
    assert kept(tmp_path) == []


def test_an_id_counts_once_and_mistakes_are_named(make_client: MakeClient, tmp_path: Path, cat: bytes) -> None:
    client = make_client(SURE, feedback_dir=tmp_path)
    ask(client, cat, "a")
    assert_problem(tell(client, "a", "cow"), 422, "invalid_parameter")
    assert tell(client, "a", "cat").status_code == 200
    assert_problem(tell(client, "a", "cat"), 404, "not_found")
    assert_problem(tell(client, "never", "cat"), 404, "not_found")
    for body in (b"", b"{}", b"cat", b'{"request_id": "a", "label": 3}', b'"\xff"'):
        assert_problem(client.post("/feedback", content=body), 422, "invalid_parameter")
    assert_problem(client.post("/feedback", content=b" " * 5000), 413, "payload_too_large")
    assert 'feedback_total{abstained="false",correct="true"} 1.0' in client.get("/metrics").text


def test_unsure_images_are_kept_and_sorted_by_their_labels(make_client: MakeClient, tmp_path: Path, cat: bytes) -> None:
    client = make_client(UNSURE, feedback_dir=tmp_path, feedback_sample=1)
    assert len(ask(client, cat, "a")["prediction_set"]["labels"]) == 10
    ask(client, cat, "b")
    tell(client, "b", "dog")
    client.post("/predict/batch", files=[("files", ("cat.png", cat))])
    client.__exit__(None, None, None)
    assert kept(tmp_path) == ["labelled/dog", "unlabelled"]
    client.__enter__()


@pytest.mark.parametrize(("session", "sample"), [(SURE, 1), (UNSURE, 0)], ids=["sure", "none sampled"])
def test_no_other_image_is_kept(
    make_client: MakeClient, tmp_path: Path, cat: bytes, session: Session, sample: float
) -> None:
    client = make_client(session, feedback_dir=tmp_path, feedback_sample=sample)
    answer = ask(client, cat, "a")
    if session is SURE:
        assert (answer["abstain"], answer["prediction_set"]["labels"]) == (False, ["cat"])
    client.__exit__(None, None, None)
    assert kept(tmp_path) == []
    client.__enter__()


def test_feedback_needs_a_key_where_there_are_keys(make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client(SURE, feedback_dir=tmp_path, api_keys="secret")
    assert_problem(tell(client, "a", "cat"), 401, "unauthorized")


def test_without_a_folder_there_is_neither_route_nor_metric(client: TestClient) -> None:
    assert_problem(tell(client, "a", "cat"), 404, "not_found")
    assert "feedback" not in client.get("/metrics").text


def test_with_a_folder_the_document_has_one_more_route(tmp_path: Path) -> None:
    paths = create_app(Settings(feedback_dir=tmp_path)).openapi()["paths"]
    responses = paths.pop("/feedback")["post"]["responses"]
    assert set(paths) == set(json.loads((DATA / "openapi.json").read_text())["paths"])
    assert all(set(responses[code]["content"]) == {"application/problem+json"} for code in responses if code >= "400")


@pytest.mark.parametrize(
    ("settings", "promised"),
    [({}, True), ({"feedback_dir": True, "feedback_sample": 0}, True), ({"feedback_dir": True}, False)],
    ids=["off", "no copies", "copies"],
)
def test_the_pages_promise_follows_the_settings(
    make_client: MakeClient, tmp_path: Path, settings: dict[str, Any], promised: bool
) -> None:
    assert PAGE.count(PROMISE) == PAGE.count(FEEDBACK.format("off")) == 1
    folder = {"feedback_dir": tmp_path} if settings.get("feedback_dir") else {}
    page = make_client(**{**settings, **folder}).get("/").text
    assert (PROMISE in page) == promised
    assert FEEDBACK.format("on" if folder else "off") in page
    assert ("keeps small copies of some images that it is unsure of, for at most 30 days" in page) != promised
