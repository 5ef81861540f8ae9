"""`load()`: the service's answers without a service."""

import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import app
from app.bundle.reader import Bundle, BundleError
from app.errors import InvalidParameter, PayloadTooLarge, UndecodableImage, UnsupportedMediaType
from app.inference.answers import ImageResult
from app.inference.sessions import Session
from app.local import GivenSettings, LocalClassifier, load
from app.settings import SettingsError
from tests.conftest import BUNDLE, DATA, ROOT


def local(loaded: tuple[Bundle, Session], **settings: Any) -> LocalClassifier:
    return LocalClassifier(GivenSettings(**{"inference_threads": 2, **settings}), loaded)


@pytest.fixture(scope="module")
def classifier(loaded: tuple[Bundle, Session]) -> Iterator[LocalClassifier]:
    with local(loaded) as classifier:
        yield classifier


PARAMETERS: list[dict[str, Any]] = [{}, {"top_k": 10}, {"coverage": 0.95}, {"kind": "photographs"}]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
@pytest.mark.parametrize("path", [DATA / "cat.png", BUNDLE / "reliability.png"], ids=lambda path: path.name)
def test_the_answer_is_the_services(
    classifier: LocalClassifier, client: TestClient, path: Path, parameters: dict[str, Any]
) -> None:
    served = client.post("/predict", content=path.read_bytes(), params=parameters).json()
    del served["model"], served["timing_ms"]
    assert classifier(path, **parameters).model_dump() == served


def test_views_are_those_that_were_asked_for(
    loaded: tuple[Bundle, Session], make_client: Callable[..., TestClient]
) -> None:
    path = BUNDLE / "reliability.png"
    with local(loaded, views=3) as classifier:
        answer = classifier(str(path)).model_dump()
    served = make_client(views=3).post("/predict", content=path.read_bytes()).json()
    assert answer == {name: served[name] for name in answer}
    assert answer["views"] == 3


def test_it_takes_paths_bytes_files_pictures_and_arrays(classifier: LocalClassifier, cat: bytes) -> None:
    expected = classifier(DATA / "cat.png")
    picture = Image.open(io.BytesIO(cat)).convert("RGB")
    for image in (str(DATA / "cat.png"), cat, bytearray(cat), io.BytesIO(cat), picture, np.asarray(picture)):
        assert classifier(image) == expected


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (b"", UndecodableImage),
        (b"no image", UnsupportedMediaType),
        (DATA / "nowhere.png", FileNotFoundError),
        (DATA, OSError),
        (3, TypeError),
        (np.zeros((4, 4)), ValueError),
    ],
    ids=str,
)
def test_what_is_no_image_is_an_error(classifier: LocalClassifier, image: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        classifier(image)


@pytest.mark.parametrize("parameters", [{"top_k": 0}, {"top_k": 11}, {"coverage": 0.5}, {"kind": "paintings"}], ids=str)
def test_a_parameter_out_of_range_is_an_error(classifier: LocalClassifier, parameters: dict[str, Any]) -> None:
    (name,) = parameters
    with pytest.raises(InvalidParameter, match=rf"{name}: it must be .* \(given"):
        classifier(DATA / "cat.png", **parameters)


def test_a_file_larger_than_allowed_is_not_read(loaded: tuple[Bundle, Session], tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    with local(loaded) as classifier, pytest.raises(PayloadTooLarge):
        classifier(large)


def test_threads_may_share_it_and_closing_lets_their_calls_finish(loaded: tuple[Bundle, Session]) -> None:
    classifier = local(loaded)
    paths = sorted(DATA.glob("*.png"))
    expected = {path: classifier(path) for path in paths}
    answers: list[tuple[Path, ImageResult]] = []
    errors: list[Exception] = []
    enough = threading.Semaphore(0)

    def work() -> None:
        try:
            while True:
                for path in paths:
                    answers.append((path, classifier(path)))
                    enough.release()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        enough.acquire()
    classifier.close()
    for thread in threads:
        thread.join()
    assert all(answer == expected[path] for path, answer in answers)
    assert [(type(error), str(error)) for error in errors] == [(RuntimeError, "the classifier is closed")] * 4
    classifier.close()


def test_a_classifier_that_nobody_holds_ends(loaded: tuple[Bundle, Session]) -> None:
    before = set(threading.enumerate())
    classifier = local(loaded)
    assert len(set(threading.enumerate()) - before) > 1
    del classifier
    assert set(threading.enumerate()) <= before


def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "the program's own")  # the service would take it for a misspelt API_KEYS
    monkeypatch.setenv("VIEWS", "many")
    monkeypatch.setenv("MODEL_DIR", "nowhere")
    with load(BUNDLE, inference_threads=1) as classifier:
        assert classifier(DATA / "cat.png").views == 1
        assert classifier.manifest.name == BUNDLE.name


def test_a_wrong_setting_or_bundle_is_an_error_of_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^views: Input should be 1 or 3; view: Extra inputs are not permitted$"):
        load(views=2, view=1)
    with pytest.raises(BundleError, match="nowhere"):
        load("nowhere")


def test_a_program_ends_that_did_not_close_it_and_a_fork_says_what_to_do() -> None:
    program = (
        "import os\n"
        "from app import load\n"
        "classifier = load(inference_threads=1)\n"
        "print(len(classifier('tests/data/cat.png').predictions), flush=True)\n"
        "if os.fork() == 0:\n"
        "    try: classifier('tests/data/cat.png')\n"
        "    except RuntimeError as error: print(error)\n"
        "else: os.wait()\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "5"
    assert done.stdout.splitlines()[1].startswith("this process was forked after load()")


def test_the_package_offers_load_alone() -> None:
    assert app.load is load
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = app.lode
