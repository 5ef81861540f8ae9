"""Write files and folders atomically: a reader, or a crash, sees the old content or the new, never a part."""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path


def try_to_write(folder: Path) -> None:
    """Make the folder, and try to write to it: only that shows whether it is allowed, for every user and file system.

    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name, fsync, rename: a reader, or a crash, sees the old file or the new one."""
    temporary = _beside(path, "tmp")
    try:
        _write_through(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder_atomically(folder: Path, files: Mapping[str, bytes], check: Callable[[Path], None]) -> None:
    """Write `files` to a folder beside `folder`, let `check` look at it, then put it in `folder`'s place.

    An existing folder is moved aside first and removed last, and moved back when anything fails.
    Raises OSError, and any error of `check`.
    """
    temporary, aside = _beside(folder, "tmp"), _beside(folder, "old")
    try:
        temporary.mkdir(parents=True)
        for name, content in files.items():
            _write_through(temporary / name, content)
        _sync_folder(temporary)
        check(temporary)
        replaced = folder.exists()
        if replaced:
            folder.rename(aside)
        try:
            temporary.rename(folder)
        except BaseException:
            if replaced:
                aside.rename(folder)
            raise
        _sync_folder(folder.parent)
        if replaced:
            shutil.rmtree(aside)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Names are kept in the folder: without this a power cut may undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
