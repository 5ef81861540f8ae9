import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.imaging.process import DecodingProcess
from app.sandbox.conversation import ProcessEnded
from tests.conftest import ROOT


@pytest.fixture
def process() -> Iterator[DecodingProcess]:
    process = DecodingProcess(memory_bytes=64 << 20, cpu_seconds=5.0)
    yield process
    process.end()


def test_an_unresponsive_process_is_killed(cat: bytes) -> None:
    process = DecodingProcess(memory_bytes=64 << 20, cpu_seconds=0.01)  # so that its silence may last 0.1 s
    os.kill(process.pid, 19)  # SIGSTOP
    with pytest.raises(ProcessEnded) as ended:
        process.identify(cat, 25_000_000)
    assert ended.value.reason == "time"


def test_a_process_inherits_no_descriptor_and_no_secret(
    process: DecodingProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(f"/proc/{process.pid}")
    assert sorted(int(name) for name in os.listdir(folder / "fd")) == [0, 1, 2]
    assert os.readlink(folder / "fd/0").startswith("socket:")
    monkeypatch.setenv("API_KEYS", "secret-key")
    other = DecodingProcess(memory_bytes=64 << 20, cpu_seconds=5.0)
    variables = Path(f"/proc/{other.pid}/environ").read_bytes()
    other.end()
    assert b"PYTHONPATH=" in variables
    assert b"API_KEYS" not in variables and b"secret" not in variables


def test_a_process_has_a_lower_priority_than_the_service(process: DecodingProcess) -> None:
    assert os.getpriority(os.PRIO_PROCESS, process.pid) > os.getpriority(os.PRIO_PROCESS, 0)


def test_a_process_ends_when_the_service_is_killed() -> None:
    code = (
        "import os, time; from app.imaging.process import DecodingProcess as P;"
        "p = P(memory_bytes=1 << 26, cpu_seconds=5.0); print(p.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert killed.returncode == -9
    status, end = Path(f"/proc/{int(killed.stdout)}/stat"), time.monotonic() + 60
    # Nobody may be there to reap it: a zombie has ended, too.
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_process_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OSError, match="does not start"):
        DecodingProcess(memory_bytes=64 << 20, cpu_seconds=5.0)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(OSError, match="No such file"):
        DecodingProcess(memory_bytes=64 << 20, cpu_seconds=5.0)
