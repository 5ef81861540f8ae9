import os
import subprocess
import sys

import pytest
from starlette.testclient import TestClient

import app.main
from app.bundle.reader import BundleError
from app.main import create_app
from app.settings import Settings
from tests.app.server import READY_SECONDS
from tests.conftest import BUNDLE, ROOT


def test_the_model_is_loaded_at_startup_and_released_at_shutdown() -> None:
    application = create_app(Settings(model_dir=BUNDLE, inference_threads=2))
    assert not hasattr(application.state, "service")
    with TestClient(application):
        service = application.state.service
        assert service.engine.alive
        assert not service.draining
    assert not service.engine.alive
    assert not service.engine.died
    assert service.draining


def test_a_missing_bundle_stops_the_start() -> None:
    with pytest.raises(BundleError), TestClient(create_app(Settings(model_dir="nowhere"))):
        pass


def test_the_asgi_application_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_DIR", str(BUNDLE))
    with TestClient(app.main.app) as client:
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("VIEWS", "2", "error: VIEWS: Input should be 1 or 3"),
        ("API_KEYS", "ungültig", "error: API_KEYS: a key may hold visible ASCII characters only"),
        ("API_KEY", "ungültig", "error: 'API_KEY' looks like the setting API_KEYS"),
    ],
)
def test_a_wrong_setting_is_refused_on_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        _ = app.main.app
    assert isinstance(ended.value.code, str)
    (line,) = ended.value.code.splitlines()
    assert line.startswith(message)
    assert value not in line.removeprefix(message)


def test_a_wrong_setting_ends_uvicorn_with_one_line() -> None:
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", "0"]
    environment = os.environ | {"VIEWS": "2"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=READY_SECONDS, env=environment)
    assert (done.returncode, done.stderr) == (1, "error: VIEWS: Input should be 1 or 3\n")


def test_other_attributes_of_the_module_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = app.main.nothing


def test_a_dead_engine_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("os.kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr("os.getpid", lambda: 7)
    app.main._end_process()
    assert [(pid, int(number)) for pid, number in sent] == [(7, 15)]
