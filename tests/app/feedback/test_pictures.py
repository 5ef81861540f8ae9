import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.feedback import pictures as module
from app.feedback.pictures import DAY, Pictures
from app.settings import SettingsError

NOISE = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
SIZE = 3200  # bytes of one of them as a PNG, about


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_is_moved_to_the_folder_of_its_class_and_holds_nothing_but_pixels(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path, days=1, max_bytes=10**6)
    first, second = pictures.keep(NOISE[0]), pictures.keep(NOISE[1])
    assert first and second
    pictures.label(first, "dog")
    pictures.close()
    assert files(tmp_path) == {f"labelled/dog/{first}", f"unlabelled/{second}"}
    with Image.open(tmp_path / "labelled/dog" / first) as image:
        assert (image.format, image.info) == ("PNG", {})
        assert (np.array(image) == NOISE[0]).all()


def test_the_oldest_are_deleted_when_all_together_are_too_large(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path, days=1, max_bytes=3 * SIZE)
    names = [pictures.keep(noise) for noise in NOISE]
    pictures.close()
    kept = [f"unlabelled/{name}" for name in names if f"unlabelled/{name}" in files(tmp_path)]
    assert kept == [f"unlabelled/{name}" for name in names][-len(kept) :] and 0 < len(kept) < len(names)
    assert sum((tmp_path / name).stat().st_size for name in kept) <= 3 * SIZE


def test_copies_of_an_earlier_process_are_found_and_deleted_when_they_are_too_old(tmp_path: Path) -> None:
    before = Pictures(tmp_path, days=1, max_bytes=10**6)
    old, new = before.keep(NOISE[0]), before.keep(NOISE[1])
    assert old and new
    before.label(old, "cat")
    before.close()
    then = time.time() - 2 * DAY
    os.utime(tmp_path / "labelled/cat" / old, (then, then))
    (tmp_path / "unlabelled" / f"{'0' * 32}.tmp").touch()  # it was ended while it wrote
    mine = tmp_path / "labelled/cat/mine.png"
    mine.touch()
    os.utime(mine, (then, then))
    Pictures(tmp_path, days=1, max_bytes=10**6).close()
    assert files(tmp_path) == {f"unlabelled/{new}", "labelled/cat/mine.png"}


def test_workers_share_a_folder_and_each_deletes_its_own_files(tmp_path: Path) -> None:
    before = Pictures(tmp_path, days=1, max_bytes=10**6)
    names = [before.keep(NOISE[index % len(NOISE)]) for index in range(16)]
    before.close()
    one, other = (Pictures(tmp_path, 1, max_bytes, number, 2) for number, max_bytes in enumerate((0, 10**6)))
    kept = [other.keep(noise) for noise in NOISE]
    one.close()
    other.close()
    theirs = {name for name in names if name and int(name[:8], 16) % 2}
    assert files(tmp_path) == {f"unlabelled/{name}" for name in (*theirs, *kept)}


def test_a_full_disk_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    pictures = Pictures(tmp_path, days=1, max_bytes=10**6)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail)
        lost = [pictures.keep(NOISE[0]) for _ in range(3)][0]
        pictures._jobs.put(lambda: patch.undo())
        kept = pictures.keep(NOISE[1])
        assert lost and kept
        pictures.label(lost, "cat")
        pictures.close()
    assert files(tmp_path) == {f"unlabelled/{kept}"}
    assert [record.getMessage() for record in caplog.records] == ["a picture cannot be kept: No space left on device"]


def test_a_picture_that_does_not_fit_leaves_no_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    pictures = Pictures(tmp_path, days=1, max_bytes=10**6)
    assert pictures.keep(NOISE[0])
    pictures.close()
    assert files(tmp_path) == set()


def test_a_picture_that_cannot_be_deleted_does_not_save_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = Pictures(tmp_path, days=1, max_bytes=2 * SIZE)
    stuck = pictures.keep(NOISE[0])
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == stuck:
            raise OSError(1, "Operation not permitted")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    names = [pictures.keep(noise) for noise in NOISE[1:]]
    pictures.close()
    assert files(tmp_path) == {f"unlabelled/{name}" for name in (stuck, names[-1])}
    said = [record.getMessage() for record in caplog.records]
    assert said == ["a picture cannot be deleted: Operation not permitted"]


def test_no_job_ends_the_thread(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("no path of ours")

    pictures = Pictures(tmp_path, days=1, max_bytes=10**6)
    pictures._put(fail)
    kept = pictures.keep(NOISE[0])
    pictures.close()
    assert files(tmp_path) == {f"unlabelled/{kept}"}
    assert [record.getMessage() for record in caplog.records] == ["a picture cannot be kept: ValueError"]


def test_a_disk_that_does_not_answer_does_not_stop_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)
    pictures, let = Pictures(tmp_path, days=1, max_bytes=10**6), threading.Event()
    pictures._put(lambda: let.wait() and None)
    pictures.close()
    let.set()
    pictures._thread.join()


@pytest.mark.parametrize("label", ["a/b", "..", ".", "", "/etc", "a\0b"])
def test_a_copy_whose_class_is_no_name_of_a_folder_stays_where_it_is(tmp_path: Path, label: str) -> None:
    pictures = Pictures(tmp_path, days=1, max_bytes=10**6)
    name = pictures.keep(NOISE[0])
    assert name is not None
    pictures.label(name, label)
    pictures.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "unlabelled" / name]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="FEEDBACK_DIR: cannot write to .*: Not a directory"):
        Pictures(tmp_path / "file", days=1, max_bytes=1)
