"""Many files, in parts. What makes a part needs no Ray; the last test runs the command, kills it and runs it again."""

import asyncio
import errno
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from app import local_files as files
from app.cluster import files as bulk
from app.cluster.files import Output, Part, PartSummary, RunOptions
from app.local_files import FilesError
from app.settings import Settings
from tests.app.conftest import Command
from tests.conftest import BUNDLE, DATA, ROOT

ASKED = RunOptions("1.0.0+0a1b2c3d", "0" * 64, top_k=2, views=1)


def make_part(folder: Path, paths: list[str], asked: RunOptions = ASKED) -> PartSummary:
    settings = Settings(model_dir=BUNDLE, inference_threads=1)
    return PartSummary(**Part(Output(str(folder), asked), settings)({"paths": [os.fsencode(path) for path in paths]}))


def rows(folder: Path) -> list[dict]:
    return [row for part in sorted(folder.glob("part-*.parquet")) for row in pq.ParquetFile(part).read().to_pylist()]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Ten images, a file that is none, and one whose name is no Unicode."""
    folder = tmp_path / "album"
    folder.mkdir()
    for path in DATA.glob("*.png"):
        (folder / path.name).symlink_to(path)
    (folder / "words.png").write_text("no image")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).symlink_to(DATA / "cat.png")
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> str:
    with zipfile.ZipFile(tmp_path / "album.zip", "w") as file:
        for name in ("b/cat.png", "a.JPG", "notes.txt"):
            file.write(DATA / "cat.png", name)
    return f"file://{tmp_path}/album.zip"


def test_rows_are_the_answers_of_the_plain_command(album: Path, tmp_path: Path, loaded: tuple) -> None:
    paths = bulk.find([str(album)])
    assert len(paths) == 12
    assert make_part(tmp_path / "out", paths) == PartSummary(12, 1)

    async def plain() -> list[dict]:
        settings = Settings(model_dir=BUNDLE, inference_threads=1)
        stream = files.classify(map(Path, paths), settings, loaded, 2)
        return [json.loads(files.as_json(result)) async for result in stream]

    found = rows(tmp_path / "out")
    for row, expected in zip(found, asyncio.run(plain()), strict=True):
        expected["path"] = expected["path"].replace("\udcff", "\\udcff")
        blank = dict.fromkeys(bulk.SCHEMA.names)
        assert row == {**blank, **expected, "model": ASKED.model}
    (fault,) = (row["error"] for row in found if row["error"])
    assert fault["code"] == "unsupported_media_type"


def test_finished_parts_are_skipped(album: Path, tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"), ASKED)
    paths = bulk.find([str(album)])
    assert output.done(paths) == {}
    make_part(tmp_path / "out", paths[:3])
    make_part(tmp_path / "out", paths[9:])
    (tmp_path / "out" / ".0.unfinished").write_bytes(b"PAR1")  # what a kill leaves
    assert output.done(paths) == dict.fromkeys(paths[:3], True) | {
        path: not path.endswith("words.png") for path in paths[9:]
    }


def test_finished_parts_are_skipped_in_a_folder_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    make_part(tmp_path / "answers[1]", [f"{DATA}/cat.png"])
    assert Output(str(tmp_path / "answers[1]"), ASKED).done([f"{DATA}/cat.png"]) == {f"{DATA}/cat.png": True}


def test_a_recomputed_part_replaces_itself(album: Path, tmp_path: Path) -> None:
    for _ in range(2):
        make_part(tmp_path / "out", bulk.find([f"{album}/c*"]))
    assert len(rows(tmp_path / "out")) == 1


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no part"])
def test_a_corrupt_part_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "part-1.parquet").write_bytes(content)
    with pytest.raises(FilesError, match=r"part-1\.parquet is no part, or is damaged: delete it"):
        Output(str(tmp_path), ASKED).done([])


def test_an_output_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file/out", "/proc/out"):
        with pytest.raises(FilesError, match=str(place)):
            Output(str(place), ASKED).make()


def test_a_disk_that_is_full_leaves_no_part_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_some(table: object, file: io.IOBase) -> None:
        file.write(b"PAR1")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bulk.pq, "write_table", write_some)
    with pytest.raises(OSError, match="No space left"):
        make_part(tmp_path / "out", [f"{DATA}/cat.png"])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("other", [RunOptions("2", "0" * 64, 2, 1), RunOptions(ASKED.model, "0" * 64, 3, 1)])
def test_a_folder_with_answers_of_another_run_is_refused(album: Path, tmp_path: Path, other: RunOptions) -> None:
    make_part(tmp_path / "out", [f"{album}/cat.png"])
    with pytest.raises(FilesError, match=r"answers of model 1\.0\.0.*--top-k 2.*choose another folder"):
        Output(str(tmp_path / "out"), other).done([])


def test_urls_name_files_folders_and_globs(archive: str, album: Path) -> None:
    assert bulk.find([f"file://{album}/cat.png"]) == [f"file://{album}/cat.png"]
    assert bulk.find([f"zip://::{archive}"]) == [f"zip://a.JPG::{archive}", f"zip://b/cat.png::{archive}"]
    assert bulk.find([f"zip://b/*::{archive}", f"zip://b::{archive}"]) == [f"zip://b/cat.png::{archive}"]


def test_images_are_read_from_urls(archive: str, tmp_path: Path, cat_label: str) -> None:
    make_part(tmp_path / "out", bulk.find([f"zip://::{archive}"]) + [f"zip://gone.png::{archive}"])
    assert [row["predictions"] and row["predictions"][0]["label"] for row in rows(tmp_path / "out")] == [
        cat_label,
        cat_label,
        None,
    ]
    assert rows(tmp_path / "out")[2]["error"]["code"] == "unreadable_file"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nope://bucket/photos", "Protocol not known"),
        ("file:///nowhere/at/all", "no file or folder /nowhere/at/all"),
        ("zip://*.webp::file://{archive}", "no images at"),
        ("zip://::file://{damaged}", "not a zip file"),
        ("zip://::file://{pipe}", "not a regular file"),
        ("zip://*.png::{pipe}", "not a regular file"),
        ("zip://::file:///nowhere.zip", "No such file"),
    ],
)
def test_a_url_that_leads_nowhere_is_an_error(archive: str, tmp_path: Path, url: str, words: str) -> None:
    (tmp_path / "damaged").write_text("no archive")
    os.mkfifo(tmp_path / "pipe")
    places = {"archive": archive.removeprefix("file://"), "damaged": tmp_path / "damaged", "pipe": tmp_path / "pipe"}
    with pytest.raises(FilesError, match=words):
        bulk.find([url.format(**places)])


def test_each_file_is_taken_once_however_it_is_named(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (album / "loop").symlink_to(".")
    monkeypatch.chdir(album)
    ways = ["cat.png", str(album / "cat.png"), "loop/cat.png", f"file://{album}/cat.png", f"file://{album}/loop/*"]
    assert bulk.find(ways)[0] == f"{album}/cat.png"
    assert len(bulk.find(ways)) == 12


def test_a_folder_is_not_left_by_a_name_alone(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far/off").mkdir(parents=True)
    (tmp_path / "far/cat.png").symlink_to(DATA / "cat.png")
    (tmp_path / "link").symlink_to("far/off")
    assert bulk.find(["link/../cat.png"]) == [f"{tmp_path}/link/../cat.png"]


def test_urls_have_the_limits_of_the_plain_command_for_pipes_and_sizes(tmp_path: Path, archive: str) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(20 << 30)
    with zipfile.ZipFile(tmp_path / "large.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("large.png", bytes(11 << 20))
    make_part(tmp_path / "out", bulk.find([f"file://{tmp_path}/*.png", f"zip://*::file://{tmp_path}/large.zip"]))
    assert [row["error"]["detail"] for row in rows(tmp_path / "out")] == [
        "the file has 21474836480 bytes, at most 10485760 are accepted",
        "not a regular file",
        "the file has more than the 10485760 bytes that are accepted",
    ]


@pytest.mark.parametrize(
    ("url", "words"), [("nope://bucket/out", "Protocol not known"), ("zip://out::file:///nowhere.zip", "No such file")]
)
def test_an_output_that_leads_nowhere_is_an_error(url: str, words: str) -> None:
    with pytest.raises(FilesError, match=words):
        Output(url, ASKED).done([])


@pytest.mark.parametrize("arguments", [["--ray"], ["--output", "out"], ["--ray", "--json", "--output", "out"]])
def test_incompatible_options_are_refused(command: Command, arguments: list[str]) -> None:
    done = command("classify", *arguments, str(DATA))
    assert (done.returncode, done.stderr) == (2, "error: --ray and --output go together, and without --json\n")


@pytest.mark.timeout(600)  # Ray may start first
def test_a_run_on_a_cluster_answers_what_no_run_before_it_has_answered(
    command: Command, album: Path, tmp_path: Path, nodes: None
) -> None:
    out = tmp_path / "out"
    arguments = ["classify", "--ray", "--output", str(out), str(album)]
    environment = {"RAY_AUTH_MODE": "disabled", "INFERENCE_THREADS": "1", "MODEL_DIR": str(BUNDLE)}
    first = command(*arguments, **environment)
    found = rows(out)
    count = len(bulk.find([str(album)]))
    assert first.stdout == f"{count} files answered, 0 were before; in {out}\n"
    assert len({row["path"] for row in found}) == len(found) == count
    assert command(*arguments, **environment).stdout.startswith(f"0 files answered, {count} were before")


@pytest.mark.slow
@pytest.mark.timeout(600)  # Ray starts twice, while other tests use the cores, too
def test_a_killed_run_resumes(command: Command, tmp_path: Path, nodes: None) -> None:
    """The first run starts a cluster of its own; the others use one that runs, by its address or from this process."""
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    for number in range(bulk.PART_FILES + 1):  # two parts
        (album / f"{number:04}.png").symlink_to(DATA / "cat.png")
    (album / "0001.png").unlink()
    (album / "0001.png").write_text("no image")
    environment = {"RAY_AUTH_MODE": "disabled", "INFERENCE_THREADS": "1", "MODEL_DIR": str(BUNDLE)}
    arguments = ["classify", "--ray", "--output", str(out), str(album)]
    program = [sys.executable, "-m", "app", *arguments]
    process = subprocess.Popen(program, cwd=ROOT, env=os.environ | environment)
    try:
        while not (parts := list(out.glob("part-*"))):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    before = {part: part.stat().st_mtime_ns for part in parts}
    running = os.environ | environment | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(program, cwd=ROOT, env=running, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "1 of 257 files failed")
    found = rows(out)
    assert sorted(row["path"] for row in found) == sorted(map(str, album.iterdir()))
    assert {part: part.stat().st_mtime_ns for part in before} == before
    count = int(done.stdout.split()[0])
    assert done.stdout == f"{count} files answered, {257 - count} were before; in {out}\n"
    assert 257 - count >= 1
    (out / next(iter(before)).name).unlink()
    assert command(*arguments, **environment).returncode in (0, 1)
    assert len(rows(out)) == 257
    assert command(*arguments, **environment).stdout.startswith("0 files answered, 257 were before")
