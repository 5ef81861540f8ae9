"""Logits once, every metric from saved logits.

A finished run's folder gets two more things:

    logits.safetensors  logits and labels of the select, calibrate and test splits, and whose weights they are of
    report.json, .txt   the report on the test split

The test images pass through `read_test_set` and nothing else, and it writes down that they did.
"""

import csv
import os
from datetime import UTC, datetime
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import nn

from app.report import Report
from training.calibrate import calibration_report
from training.data import load
from training.logits import Scored, predict_logits
from training.metrics import build_report, report_text
from training.outcome import Outcome
from training.problems import TrainingError
from training.storage import write_atomically

LOGITS, REPORT, REPORT_TEXT = "logits.safetensors", "report.json", "report.txt"
SPLITS = ("select", "calibrate", "test")
READS_HEADER = ("date", "digest", "accuracy")  # sha256 of the weights, or the digest of the bundle that was served


def evaluate(outcome: Outcome, data_dir: Path, test_reads: Path, *, download: bool) -> Report:
    """Compute, save and report the logits of a finished run; logits that are there already are not computed again.

    Raises TrainingError when the data are missing or others, or when a file cannot be written.
    """
    scored = saved_logits(outcome)
    if scored is None:
        images, parts = outcome.data(data_dir, download=download)
        model = outcome.model()
        scored = {}
        for name, index in (("select", parts.select), ("calibrate", parts.calibrate)):
            part = images.take(index)
            scored[name] = Scored(predict_logits(model, part.images), part.labels)
        scored["test"] = read_test_set(model, data_dir, test_reads, outcome.weights_sha256)
        _save(outcome, scored)
    calibration = calibration_report(scored["calibrate"], scored["test"])
    report = build_report(scored["test"], outcome.history, calibration)
    write_atomically(outcome.folder / REPORT, render_report(report))
    write_atomically(outcome.folder / REPORT_TEXT, report_text(scored["test"]).encode())
    return report


def read_test_set(model: nn.Module, data_dir: Path, test_reads: Path, weights_sha256: str) -> Scored:
    """Logits of the 10,000 test images, and a line in `test_reads` (date, weights, accuracy) that they were read.

    A log that cannot be written is found out before the images are read.
    """
    append_read(test_reads)
    test = load(data_dir, train=False, download=False)
    scored = Scored(predict_logits(model, test.images), test.labels)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    append_read(test_reads, (now, weights_sha256, f"{scored.accuracy():.4f}"))
    return scored


def append_read(test_reads: Path, *rows: tuple[str, ...]) -> None:
    """Append rows; a new file gets its header. Raises TrainingError when the file cannot be written."""
    try:
        test_reads.parent.mkdir(parents=True, exist_ok=True)
        with test_reads.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(READS_HEADER)
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise TrainingError(
            f"cannot write --test-reads {test_reads} ({error.strerror}): name a file that can be written"
        ) from None


def saved_logits(outcome: Outcome) -> dict[str, Scored] | None:
    """Logits by split, if there are any of this outcome's very weights."""
    try:
        with safe_open(str(outcome.folder / LOGITS), framework="pt") as saved:
            if saved.metadata() != {"weights_sha256": outcome.weights_sha256}:
                return None
            return {
                name: Scored(saved.get_tensor(f"{name}.logits"), saved.get_tensor(f"{name}.labels")) for name in SPLITS
            }
    except (OSError, SafetensorError):
        return None


def render_report(report: Report) -> bytes:
    return (report.model_dump_json(indent=2) + "\n").encode()


def _save(outcome: Outcome, scored: dict[str, Scored]) -> None:
    tensors = {f"{name}.logits": part.logits for name, part in scored.items()}
    tensors |= {f"{name}.labels": part.labels for name, part in scored.items()}
    content = save_safetensors(tensors, metadata={"weights_sha256": outcome.weights_sha256})
    write_atomically(outcome.folder / LOGITS, content)
