import asyncio
import errno
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from app import local_files
from app.errors import Unavailable
from app.inference.answers import Fault, ImageResult, Prediction, PredictionSet
from app.inference.sessions import Outputs, Session
from app.local_files import (
    FileResult,
    FilesError,
    Skipped,
    about_skipped,
    as_json,
    as_row,
    classify,
    find,
    shown,
)
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


def test_a_folder_gives_its_images_recursively(album: Path) -> None:
    assert find([str(album)]) == [album / "a.JPG", album / "b.png", album / "deep/er/c.png"]


def test_files_of_a_folder_are_images_by_content_too_and_the_others_are_named(tmp_path: Path, cat: bytes) -> None:
    contents = {
        "b": cat,
        "a.dat": b"\xff\xd8\xff\xe0",
        "c.heic": b"\0\0\0\x18ftypheic",
        "d.txt": b"a cat, in words",
        "e.png": b"words",
        "empty": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    skipped: list[Skipped] = []
    assert [path.name for path in find([str(tmp_path)], skipped)] == ["a.dat", "b", "e.png"]
    assert [(one.path.name, one.format) for one in skipped] == [
        ("c.heic", "HEIC"),
        ("d.txt", None),
        ("empty", None),
        ("pipe", None),
    ]
    folder = shown(tmp_path)
    assert about_skipped(skipped[:2]) == f"skipped 2 files: {folder}/c.heic (HEIC), {folder}/d.txt (no image)"
    assert about_skipped(skipped[:1] * 12).endswith("(HEIC) and 2 more")


def test_a_file_that_is_named_is_not_skipped(album: Path) -> None:
    skipped: list[Skipped] = []
    assert album / "notes.txt" in find([str(album), str(album / "notes.txt")], skipped)
    assert album / "notes.txt" not in [one.path for one in skipped]


def test_a_folder_without_images_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "c.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(FilesError, match=r"no images in the folder .*; skipped 1 file: .*c.heic \(HEIC\)"):
        find([str(tmp_path)])


def test_a_named_file_is_taken_with_any_name(album: Path) -> None:
    assert find([str(album / "notes.txt")]) == [album / "notes.txt"]


def test_globs_name_files_and_folders(album: Path) -> None:
    assert find([f"{album}/*.png"]) == [album / "b.png"]
    assert find([f"{album}/**/*.png"]) == [album / "b.png", album / "deep/er/c.png"]
    assert find([f"{album}/d*"]) == [album / "deep/er/c.png"]
    (album / "[1].png").touch()
    assert find([f"{album}/[1].png"]) == [album / "[1].png"]


def test_a_file_named_twice_is_taken_once(album: Path) -> None:
    assert find([str(album / "b.png"), str(album), str(album / "b.png")])[0] == album / "b.png"
    assert len(find([str(album / "b.png"), str(album), str(album / "b.png")])) == 3


@pytest.mark.parametrize(
    ("pattern", "words"), [("none.png", "no file or folder"), ("*.webp", "nothing matches"), ("empty", "no images")]
)
def test_a_path_that_matches_nothing_is_an_error(album: Path, pattern: str, words: str) -> None:
    with pytest.raises(FilesError, match=words):
        find([str(album / "b.png"), str(album / pattern)])


def test_a_search_ends_despite_link_cycles(album: Path) -> None:
    (album / "deep/up").symlink_to(album)
    (album / "deep/er/self").symlink_to(".")
    (album / "deep/er/other").symlink_to(album / "deep")
    three = [album / "a.JPG", album / "b.png", album / "deep/er/c.png"]
    assert find([str(album)]) == find([str(album), str(album / "deep/up")]) == three
    assert find([f"{album}/**"]) == [*three, album / "notes.txt"]
    assert find([f"{album}/**/*.png"]) == find([f"{album}/**/**/*.png"]) == three[1:]
    assert len(find([f"{album}/{'*/' * 30}*.png"])) == 2  # of paths through the circles there are millions


def test_each_file_is_taken_once_however_it_is_named(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album)
    (album / "link").symlink_to("deep")
    (album / "second.png").symlink_to("b.png")
    ways = ["b.png", str(album / "b.png"), "./deep/../b.png", "deep/er/c.png", "link/er/c.png", "link"]
    assert find(ways) == [Path("b.png"), Path("deep/er/c.png")]
    assert find(["second.png", "b.png"]) == [Path("second.png"), Path("b.png")]  # a link is a name of its own


async def test_an_unreadable_folder_is_reported_in_a_row(
    album: Path, loaded: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def scandir(folder: str | Path) -> "Iterator[os.DirEntry[str]]":
        if Path(folder).name == "er":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)  # root may read all folders
    for pattern in ("", "/deep", "/deep/er", "/deep/*", "/**/*.png", "/*/er", "/d*/*/*.png"):
        assert album / "deep/er" in find([f"{album}{pattern}"])
    (result,) = await results(find([f"{album}/deep"]), loaded)
    assert (result.path, result.fault.code) == (album / "deep/er", "unreadable_file")
    assert result.fault.detail == "Permission denied"


async def test_a_search_is_not_limited_by_recursion_or_path_length(tmp_path: Path, loaded: tuple) -> None:
    bottom, levels = os.open(tmp_path, os.O_RDONLY), 1200
    for level in range(levels):
        os.mkdir("abcd" if level > 1100 else "a", dir_fd=bottom)
        below = os.open("abcd" if level > 1100 else "a", os.O_RDONLY, dir_fd=bottom)
        os.close(bottom)
        bottom = below
    for _ in range(20):
        os.mkdir("b" * 200, dir_fd=bottom)
        below = os.open("b" * 200, os.O_RDONLY, dir_fd=bottom)
        os.close(bottom)
        bottom = below
    os.close(bottom)
    try:
        (path,) = find([str(tmp_path)])
        (result,) = await results([path], loaded)
        assert result.fault.detail == "File name too long"
    finally:
        subprocess.run(["rm", "-r", str(tmp_path / "a")], check=True)  # pytest's own way fails at such a depth


@pytest.mark.parametrize("pattern", ["", "no\0thing", "b.png/c.png", "\ud800"])
def test_an_invalid_file_name_is_an_error(album: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album)
    with pytest.raises(FilesError, match="no file or folder"):
        find([pattern])


async def test_special_and_unreadable_files_are_reported_in_rows(album: Path, loaded: tuple) -> None:
    (album / "round.png").symlink_to("round.png")
    (album / "dangling.png").symlink_to("nowhere")
    os.mkfifo(album / "pipe.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(album / "socket.png"))
    long = album / ("x" * 300)
    found = find(
        [str(album), str(long), str(album / "round.png/below.png"), "/dev/zero", "/proc/kmsg", "/proc/self/mem"]
    )
    faults = {result.path.name: result.fault for result in await results(found, loaded) if result.fault}
    assert {name: fault.detail for name, fault in faults.items()} == {
        "round.png": "Too many levels of symbolic links",
        "dangling.png": "No such file or directory",
        "pipe.png": "not a regular file",
        "socket.png": "not a regular file",
        long.name: "File name too long",
        "below.png": "Too many levels of symbolic links",
        "zero": "not a regular file",
        "kmsg": "the file is empty",
        "mem": "the file is empty",
    }
    assert len(found) == 3 + len(faults)


async def test_a_file_that_changes_while_it_is_read_is_reported_in_a_row(
    album: Path, loaded: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, check = album / "b.png", local_files._check_regular
    large = 11 << 20

    def then(*changes: Callable[[], object]) -> Callable[[os.stat_result], None]:
        """What the file is, is looked at twice: before it is opened, and after."""
        coming = iter(changes)
        return lambda status: (check(status), next(coming)())[0]

    monkeypatch.setattr(local_files, "_check_regular", then(lambda: None, lambda: os.truncate(path, large)))
    (result,) = await results([path], loaded)
    assert result.fault.detail == f"the file has {large} bytes, at most 10485760 are accepted"
    monkeypatch.setattr(local_files, "_check_regular", then(lambda: (path.unlink(), os.mkfifo(path))))
    (result,) = await results([path], loaded)
    assert result.fault.detail == "not a regular file"
    monkeypatch.undo()
    gone, folder, wrong = await results([album / "gone.png", album / "deep", Path("a\0b")], loaded)
    assert gone.fault.detail == "No such file or directory"
    assert folder.fault.detail == "it is a folder"
    assert wrong.fault.detail == "embedded null byte"


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
    assert result.fault.detail == f"the file has {1 << 40} bytes, at most 10485760 are accepted"


async def test_only_a_window_of_files_is_in_memory(loaded: tuple) -> None:
    taken, begun, release = 0, asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class Held(Session):
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


async def test_an_engine_that_dies_ends_the_classification(loaded: tuple, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Session):
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
        "measured_on": None,
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
