"""The command line of the service, in this process."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from app import __main__ as program

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`python -m app ...` with these settings, to its end, without the seconds in which a new process imports it.

    For commands that end before they serve: a server changes its process.
    """

    def run(*arguments: str, **environment: object) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.setattr(program, "give_memory_back", lambda: None)
            patch.setattr(sys, "argv", ["app", *arguments])
            for name, value in environment.items():
                patch.setenv(name, str(value))
            code: object = 0
            try:
                program.main()
            except SystemExit as stop:
                code = stop.code or 0
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run
