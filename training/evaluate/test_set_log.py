"""The log of every reading of the test set: a CSV file that is only ever appended to.

The number of lines shows whether models were chosen by their test accuracy.
"""

import csv
import os
from datetime import UTC, datetime
from pathlib import Path

from training.errors import TrainingError

HEADER = ("date", "weights_sha256", "accuracy", "images")


def check_log(path: Path) -> None:
    """Raises TrainingError unless the log can be appended to; a new log gets its header."""
    _append(path)


def log_read(path: Path, weights_sha256: str, accuracy: float, images: str) -> None:
    """Append a line: these weights had this accuracy on these `images`, in words.

    Raises TrainingError when the log cannot be written.
    """
    _append(path, (datetime.now(UTC).isoformat(timespec="seconds"), weights_sha256, f"{accuracy:.4f}", images))


def _append(path: Path, *rows: tuple[str, ...]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(HEADER)
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise TrainingError(
            f"cannot write --test-reads {path} ({error.strerror}): name a file that can be written"
        ) from None
