"""Copies of images in a folder, as the network saw them: 32x32 or 64x64 pixels, encoded anew, without metadata.

FOLDER/unlabelled/NAME.png           of images whose class nobody has told
FOLDER/labelled/CLASS/NAME.png       a folder a class, which `training` reads

Names are random. A thread of its own writes, so that no request waits for the disk. Files that are too old are deleted,
and the oldest when all together are too large. Files of other names are left alone.
"""

import io
import logging
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..settings import SettingsError

MOST_WAITING = 64  # pictures; more are not kept
PRUNE_SECONDS = 600.0
CLOSE_SECONDS = 5.0
DAY = 86_400
NAME = re.compile(r"[0-9a-f]{32}\.(png|tmp)")
logger = logging.getLogger("app.feedback")


@dataclass
class _File:
    path: Path
    time: float
    size: int
    stuck: bool = False


class Pictures:
    """Close it when done. days: how long a file is kept; max_bytes: of all together.

    Several workers share a folder: by its name, each file is that of one of them, which alone counts and deletes it.

    Raises SettingsError if `folder` cannot be written.
    """

    def __init__(self, folder: Path, days: float, max_bytes: int, worker: int = 0, workers: int = 1) -> None:
        self._worker, self._workers = worker, workers
        self._unlabelled, self._labelled = folder / "unlabelled", folder / "labelled"
        try:
            self._unlabelled.mkdir(parents=True, exist_ok=True)
            probe = self._unlabelled / self._new_name(".tmp")
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise SettingsError(f"FEEDBACK_DIR: cannot write to {str(folder)!a}: {error.strerror}") from None
        self._days = days
        self._max_bytes = max_bytes
        self._files: dict[str, _File] = {}  # by name, the oldest first; only the thread uses it
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name="feedback-pictures", daemon=True)
        self._thread.start()

    def keep(self, thumbnail: NDArray[np.uint8]) -> str | None:
        """Keep a copy of uint8 RGB [height, width, 3]. Returns its name; None if too many wait to be written."""
        name = self._new_name(".png")
        return name if self._put(partial(self._write, name, thumbnail)) else None

    def label(self, name: str, label: str) -> None:
        """Move a copy to the folder of its class, unless it has been deleted or the class is no name of a folder."""
        if Path(label).name == label and label not in ("", "..") and "\0" not in label:
            self._put(partial(self._move, name, label))

    def close(self) -> None:
        """Write what waits, for at most CLOSE_SECONDS: the disk may not answer."""
        with suppress(queue.Full):
            self._jobs.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(CLOSE_SECONDS)

    def _put(self, job: Callable[[], None]) -> bool:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            return False
        return True

    def _work(self) -> None:
        job: Callable[[], None] | None = self._find
        failing = ""
        while job is not None:
            try:
                job()
                self._prune()
                failing = ""
            except Exception as error:  # without this thread nothing would be deleted any more
                if failing != (failing := _reason(error)):  # of a full disk, the log speaks once
                    logger.warning("a picture cannot be kept: %s", failing)
            try:
                job = self._jobs.get(timeout=PRUNE_SECONDS)
            except queue.Empty:
                job = self._prune

    def _find(self) -> None:
        """What an earlier process kept, and what it had no time to finish."""
        found = []
        for path in (*self._unlabelled.iterdir(), *self._labelled.glob("*/*")):
            if NAME.fullmatch(path.name) and self._is_ours(path.name) and path.is_file():
                status = path.stat()
                if path.suffix == ".tmp":
                    path.unlink()
                else:
                    found.append(_File(path, status.st_mtime, status.st_size))
        self._files = {file.path.name: file for file in sorted(found, key=lambda file: file.time)}

    def _write(self, name: str, thumbnail: NDArray[np.uint8]) -> None:
        buffer = io.BytesIO()
        Image.fromarray(thumbnail).save(buffer, "PNG")
        path = self._unlabelled / name
        unfinished = path.with_suffix(".tmp")
        try:
            unfinished.write_bytes(buffer.getvalue())
            os.replace(unfinished, path)
        except OSError:
            unfinished.unlink(missing_ok=True)  # on a full disk it would stay, and count nowhere
            raise
        self._files[name] = _File(path, time.time(), buffer.tell())

    def _move(self, name: str, label: str) -> None:
        if file := self._files.get(name):
            place = self._labelled / label / name
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file.path, place)
            file.path = place

    def _prune(self) -> None:
        total = sum(file.size for file in self._files.values())
        oldest = time.time() - self._days * DAY
        for name, file in list(self._files.items()):
            if file.time >= oldest and total <= self._max_bytes:
                break
            if self._delete(file):
                del self._files[name]
                total -= file.size

    def _delete(self, file: _File) -> bool:
        """Whether it is gone. One that cannot be deleted, of which the log speaks once, does not save the others."""
        try:
            file.path.unlink(missing_ok=True)
        except OSError as error:
            if not file.stuck:
                logger.warning("a picture cannot be deleted: %s", _reason(error))
            file.stuck = True
            return False
        return True

    def _is_ours(self, name: str) -> bool:
        return int(name[:8], 16) % self._workers == self._worker

    def _new_name(self, suffix: str) -> str:
        while not self._is_ours(name := secrets.token_hex(16)):
            pass
        return name + suffix


def _reason(error: Exception) -> str:
    """Without the file's path, which an OSError names."""
    return (error.strerror if isinstance(error, OSError) else None) or error.__class__.__name__
