"""Two workers of one service, which are here two applications in one process, each with an event loop of its own."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.bundle.reader import Bundle
from app.errors import LoadFailed, Problem
from app.inference.drift import ring_bytes
from app.inference.preloaded import Preloaded
from app.inference.repository import Loaded
from app.inference.sessions import Session
from app.main import create_app
from app.settings import Settings, SettingsError
from app.workers.board import CONTENT_BYTES, GENERATION, SERVING, Board
from app.workers.post import ANSWER, Post
from app.workers.worker import Worker
from tests.conftest import BUNDLE, SMALL_BUNDLE

LOAD = "/v2/repository/models/cifar10/load"
ADMIN = {"Authorization": "Bearer admin"}


class Pair:
    def __init__(self, loaded: tuple[Bundle, Session], folder: Path) -> None:
        self.link = folder / "current"
        self.link.symlink_to(BUNDLE)
        self.settings = Settings(
            model_dir=self.link,
            inference_threads=1,
            workers=2,
            feedback_dir=folder / "feedback",
            drift_window_images=2,
            admin_keys="admin",
            deadline_seconds=20,
        )
        self.board = Board(2, self.settings.folders, ring_bytes(2))
        self.post = Post(2)
        self.workers = [Worker(self.board, self.post, number) for number in range(2)]
        self.clients = []
        for worker in self.workers:
            worker.part.numbers[GENERATION] = worker.number + 1
            given: Loaded = {"cifar10": loaded}
            app = create_app(self.settings, given, on_death=lambda: None, worker=worker)
            self.clients.append(TestClient(app, raise_server_exceptions=False))
            self.clients[-1].__enter__()
            assert given == {}
            worker.serve()
        self.box: list[dict[str, Any]] = []

    def counters(self, name: str) -> list[float]:
        """The sum of a metric over all labels, in each worker."""
        texts = [client.get("/metrics").text for client in self.clients]
        found = [re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE) for text in texts]
        return [sum(map(float, values)) for values in found]

    def close(self) -> None:
        for client in self.clients:
            client.__exit__(None, None, None)
        self.post.close()


@pytest.fixture(scope="module")
def pair(loaded: tuple[Bundle, Session], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(loaded, tmp_path_factory.mktemp("pair"))
    yield made
    made.close()


def supervise(pair: Pair, act: Callable[[Any, Callable[[str, Any], None]], Problem | None]) -> threading.Thread:
    """A thread in the supervisor's place. `act` gets the name to load and a function that asks all workers."""

    def ask(kind: str, content: Any) -> None:
        for number in range(2):
            pair.post.send(number, kind, content, pair.post.supervisor, 1)
        answers = 0
        while answers < 2:
            answers += (message := receive())["kind"] == ANSWER
            pair.box.append(message)

    def receive() -> dict[str, Any]:
        while (message := pair.post.receive(pair.post.supervisor)) is None:
            time.sleep(0.001)
        return message

    def run() -> None:
        while (message := receive())["kind"] != "load":
            pass
        for number in range(2):
            pair.post.send(number, "loading", message["content"], pair.post.supervisor)
        problem = act(message["content"], ask)
        answer = [problem.code, problem.detail] if problem else None
        pair.post.send(message["from"], ANSWER, answer, pair.post.supervisor, message["number"])

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_worker_is_ready_when_all_have_started(pair: Pair) -> None:
    pair.board.supervisor.numbers[SERVING] = 0
    answer = pair.clients[0].get("/readyz")
    assert (answer.status_code, answer.json()["detail"]) == (503, "other workers are starting")
    pair.board.supervisor.numbers[SERVING] = 1
    assert [client.get("/readyz").status_code for client in pair.clients] == [200, 200]


def test_either_worker_shows_the_counts_of_both(pair: Pair, cat: bytes) -> None:
    for client in pair.clients:
        client.post("/predict", content=cat).raise_for_status()
    for name in ("predictions_total", "prediction_confidence_count"):
        assert pair.counters(name) == [2, 2]
    drift = pair.counters("prediction_drift")
    assert drift[0] == drift[1] > 0  # of two answers, one from each
    assert pair.counters("predict_inflight_requests") == [1, 1]  # the scrape itself


def test_statistics_are_of_both(pair: Pair) -> None:
    body = {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}]}
    for client in pair.clients:
        client.post("/v2/models/cifar10/infer", json=body).raise_for_status()
    for path in ("/v2/models/cifar10/stats", "/v2/models/stats"):
        found = [client.get(path).json()["model_stats"][0]["inference_count"] for client in pair.clients]
        assert found == [2, 2]


def test_feedback_reaches_the_worker_that_answered(pair: Pair, cat: bytes) -> None:
    one, other = pair.clients
    one.post("/predict", content=cat, headers={"X-Request-ID": "mine"}).raise_for_status()
    assert other.post("/feedback", json={"request_id": "mine", "label": "mouse"}).status_code == 422
    answer = other.post("/feedback", json={"request_id": "mine", "label": "cat"})
    assert answer.json() == {"correct": True, "covered": True}
    for client in pair.clients:
        assert client.post("/feedback", json={"request_id": "mine", "label": "cat"}).status_code == 404
    assert pair.counters("feedback_total") == [1, 1]


def test_counts_that_do_not_fit_are_logged(pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr("app.api.siblings.counts_of", lambda *_: bytes(CONTENT_BYTES + 1))
    assert pair.clients[0].get("/metrics").status_code == 200
    assert "counts cannot be published" in caplog.text


def test_a_load_is_of_both_workers(pair: Pair) -> None:
    models = Preloaded(pair.settings, processes=3)
    pair.link.unlink()
    pair.link.symlink_to(SMALL_BUNDLE)

    def act(name: str, ask: Callable[[str, Any], None]) -> None:
        digest = models.prepare(name)
        ask("prepare", {"name": name, "digest": digest})
        assert [message["content"] for message in pair.box] == [None, None]
        models.take_over()
        ask("loaded", {"name": name, "reason": None})

    before = [client.get("/model").json()["version"] for client in pair.clients]
    thread = supervise(pair, act)
    answer = pair.clients[0].post(LOAD, headers=ADMIN)
    thread.join()
    after = {client.get("/model").json()["version"] for client in pair.clients}
    assert after == {answer.json()["version"]} and not after & set(before)
    assert models.give()["cifar10"][0].manifest.digest == answer.json()["digest"]
    assert pair.clients[1].get("/v2/models/cifar10/stats").json()["model_stats"][0]["inference_count"] == 0


def test_a_load_that_one_worker_cannot_do_changes_nothing(pair: Pair) -> None:
    def act(name: str, ask: Callable[[str, Any], None]) -> Problem:
        pair.box.clear()
        ask("prepare", {"name": name, "digest": "another"})
        (reason,) = {message["content"] for message in pair.box}
        ask("loaded", {"name": name, "reason": reason})
        return LoadFailed(reason)

    before = [client.get("/model").json()["version"] for client in pair.clients]
    thread = supervise(pair, act)
    answer = pair.clients[1].post(LOAD, headers=ADMIN)
    thread.join()
    assert (answer.status_code, answer.json()["code"]) == (409, "load_failed")
    assert "the folder has changed meanwhile" in answer.json()["detail"]
    assert [client.get("/model").json()["version"] for client in pair.clients] == before
    for client in pair.clients:
        assert client.post("/v2/repository/index").json()[0]["reason"] == answer.json()["detail"]


def test_a_folder_that_is_gone_is_no_bundle_and_its_place_is_not_told(pair: Pair) -> None:
    models = Preloaded(pair.settings, processes=3)
    pair.link.unlink()
    with pytest.raises(LoadFailed) as refused:
        models.prepare("cifar10")
    assert "the model that was there goes on" in refused.value.detail and "current" not in refused.value.detail
    models.drop()
    assert models.names == ["cifar10"] and models.give().keys() == {"cifar10"}
    pair.link.symlink_to(BUNDLE)


def test_several_workers_need_the_services_own_command() -> None:
    with pytest.raises(SettingsError, match="WORKERS: only `python -m app serve` starts several processes"):
        create_app(Settings(workers=2))
