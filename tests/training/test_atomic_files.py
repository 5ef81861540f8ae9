import os
from pathlib import Path

import pytest

from training import atomic_files
from training.atomic_files import write_atomically, write_folder_atomically


class Disk(Exception):
    pass


def accept(folder: Path) -> None:
    assert folder.is_dir()


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert listing(tmp_path) == {"state": b"two"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    write_atomically(path, b"one")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"two")
    assert listing(tmp_path) == {"state": b"one"}


def test_a_folder_is_written_checked_and_named(tmp_path: Path) -> None:
    seen = {}

    def check(folder: Path) -> None:
        assert not (tmp_path / "deep" / "bundle").exists()
        seen.update(listing(folder))

    write_folder_atomically(tmp_path / "deep" / "bundle", {"a": b"1", "b": b"2"}, check)
    assert seen == {"a": b"1", "b": b"2"}
    assert listing(tmp_path) == {"deep/bundle/a": b"1", "deep/bundle/b": b"2"}


def test_a_folder_replaces_another_as_a_whole(tmp_path: Path) -> None:
    write_folder_atomically(tmp_path / "bundle", {"a": b"1", "gone": b"2"}, accept)
    write_folder_atomically(tmp_path / "bundle", {"a": b"3"}, accept)
    assert listing(tmp_path) == {"bundle/a": b"3"}


@pytest.mark.parametrize(
    ("moment", "existed"),
    [
        ("write", False),
        ("write", True),
        ("check", False),
        ("check", True),
        ("move aside", True),
        ("rename", False),
        ("rename", True),
    ],
)
def test_whenever_it_fails_everything_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, existed: bool
) -> None:
    bundle = tmp_path / "bundle"
    if existed:
        write_folder_atomically(bundle, {"a": b"old"}, accept)
    before = listing(tmp_path)
    write_through, rename = atomic_files._write_through, Path.rename

    def failing_write(path: Path, content: bytes) -> None:
        if moment == "write" and path.name == "b":
            raise Disk
        write_through(path, content)

    def failing_rename(self: Path, target: Path) -> Path:
        if (moment == "move aside" and self == bundle) or (moment == "rename" and self.suffix == ".tmp"):
            raise Disk
        return rename(self, target)

    def check(_: Path) -> None:
        if moment == "check":
            raise Disk

    monkeypatch.setattr(atomic_files, "_write_through", failing_write)
    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(Disk):
        write_folder_atomically(bundle, {"a": b"new", "b": b"new"}, check)
    assert listing(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["bundle"] if existed else [])
