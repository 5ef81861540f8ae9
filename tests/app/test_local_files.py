import asyncio
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.errors import Unavailable
from app.inference.answers import Fault, ImageResult, Prediction, PredictionSet
from app.inference.sessions import Outputs
from app.local_files import FileResult, FilesError, as_json, as_row, classify, find, shown
from app.settings import Settings
from tests.conftest import BUNDLE, DATA


def settings(**values: object) -> Settings:
    return Settings(**{"model_dir": BUNDLE, "inference_threads": 1, **values})


async def results(paths: list[Path], loaded: tuple, **values: object) -> list[FileResult]:
    return [result async for result in classify(paths, settings(**values), loaded, top_k=2)]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """b.png, a.JPG, notes.txt, deep/er/c.png, empty/"""
    for name in ("b.png", "a.JPG", "deep/er/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / "cat.png", tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_a_folder_gives_the_images_in_it_and_below(album: Path) -> None:
    assert find([str(album)]) == [album / "a.JPG", album / "b.png", album / "deep/er/c.png"]


def test_a_file_that_is_named_is_taken_whatever_it_is(album: Path) -> None:
    assert find([str(album / "notes.txt")]) == [album / "notes.txt"]


def test_globs_name_files_and_folders(album: Path) -> None:
    assert find([f"{album}/*.png"]) == [album / "b.png"]
    assert find([f"{album}/**/*.png"]) == [album / "b.png", album / "deep/er/c.png"]
    assert find([f"{album}/d*"]) == [album / "deep/er/c.png"]
    (album / "[1].png").touch()
    assert find([f"{album}/[1].png"]) == [album / "[1].png"]


def test_a_file_that_is_named_twice_is_taken_once(album: Path) -> None:
    assert find([str(album / "b.png"), str(album), str(album / "b.png")])[0] == album / "b.png"
    assert len(find([str(album / "b.png"), str(album), str(album / "b.png")])) == 3


@pytest.mark.parametrize(
    ("pattern", "words"), [("none.png", "no file or folder"), ("*.webp", "nothing matches"), ("empty", "no images")]
)
def test_what_names_nothing_is_an_error(album: Path, pattern: str, words: str) -> None:
    with pytest.raises(FilesError, match=words):
        find([str(album / "b.png"), str(album / pattern)])


async def test_results_come_in_order_and_failures_in_their_place(album: Path, loaded: tuple, cat_label: str) -> None:
    (album / "empty.png").touch()
    os.mkfifo(album / "pipe.png")
    paths = [album / name for name in ("b.png", "notes.txt", "empty.png", "gone.png", "pipe.png", "a.JPG")]
    good, text, empty, gone, pipe, last = await results(paths, loaded)
    assert good.answer.predictions[0].label == last.answer.predictions[0].label == cat_label
    assert len(good.answer.predictions) == 2
    assert good.fault is last.fault is None
    assert [result.fault.code for result in (text, empty, gone, pipe)] == [
        "unsupported_media_type",
        "undecodable_image",
        "unreadable_file",
        "unreadable_file",
    ]


async def test_a_file_that_is_too_large_is_not_read_whole(album: Path, loaded: tuple) -> None:
    with (album / "large.png").open("wb") as file:
        file.truncate(1 << 40)
    (result,) = await results([album / "large.png"], loaded)
    assert result.fault.code == "payload_too_large"


async def test_only_a_window_of_files_is_in_memory(loaded: tuple) -> None:
    taken, begun, release = 0, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class Held:
        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            loop.call_soon_threadsafe(begun.set)
            release.wait(30)
            return loaded[1].run(images, maps)

    def paths() -> Iterator[Path]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield DATA / "cat.png"

    stream = classify(paths(), settings(max_batch_images=4), (loaded[0], Held()), top_k=1)
    first = asyncio.create_task(anext(stream))
    await begun.wait()
    assert taken == 8
    release.set()
    assert (await first).fault is None
    assert len([result async for result in stream]) == 99


async def test_an_engine_that_dies_ends_it(loaded: tuple, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def run(self, images: np.ndarray, maps: bool = False) -> Outputs:
            raise RuntimeError("gone")

    with pytest.raises(Unavailable):
        await results([DATA / "cat.png"] * 50, (loaded[0], Broken()))


def test_a_row_and_a_line_of_json() -> None:
    cat = ImageResult(predictions=[Prediction(label="cat", class_id=3, probability=0.5)], views=1)
    set_of_two = PredictionSet(coverage=0.9, labels=["cat", "dog"])
    trust = {"prediction_set": set_of_two, "abstain": True, "ood_score": 2.0, "ood_threshold": 1.0}
    plain = FileResult(Path("a.png"), cat)
    strange = FileResult(Path("a.png"), cat.model_copy(update=trust))
    known = FileResult(Path("a.png"), cat.model_copy(update=trust | {"abstain": False}))
    bad = FileResult(Path("b\n.png"), fault=Fault(code="undecodable_image", detail="the file is empty"))
    assert as_row(plain, 8) == "a.png     cat         50.0%"
    assert as_row(strange, 8) == "a.png     ?  cat         50.0%"
    assert as_row(known, 8) == "a.png        cat         50.0%"
    assert as_row(bad, 8) == "b\\n.png   error: the file is empty"
    assert json.loads(as_json(strange)) == {
        "path": "a.png",
        "predictions": [{"label": "cat", "class_id": 3, "probability": 0.5}],
        "views": 1,
        **trust,
        "prediction_set": {"coverage": 0.9, "labels": ["cat", "dog"]},
    }
    assert json.loads(as_json(plain))["abstain"] is None
    assert json.loads(as_json(bad)) == {
        "path": "b\n.png",
        "error": {"code": "undecodable_image", "detail": "the file is empty"},
    }


def test_a_path_is_shown_on_one_line_of_any_terminal() -> None:
    assert shown(Path("Bär.png")) == "Bär.png"
    assert shown(Path("a\x1b[2J\n.png")) == "a\\x1b[2J\\n.png"
    assert shown(Path(os.fsdecode(b"\xff.png"))) == "\\udcff.png"
