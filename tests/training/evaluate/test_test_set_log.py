from pathlib import Path

import pytest

from training.errors import TrainingError
from training.evaluate.test_set_log import HEADER, check_log, log_read


def test_the_log_is_only_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "new" / "test_reads.csv"
    check_log(log)
    log_read(log, "a" * 64, 0.9, "all 20")
    before = log.read_text()
    check_log(log)
    log_read(log, "b" * 64, 0.81234, "10 damaged")
    header, first, second = log.read_text().splitlines()
    assert before.splitlines() == [header, first]
    assert header == ",".join(HEADER)
    assert second.endswith(f",{'b' * 64},0.8123,10 damaged")


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot write --test-reads .*name a file that can be written"):
        check_log(tmp_path)
