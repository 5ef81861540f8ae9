import sys

import pytest

from training import __main__ as program
from training import command_line


@pytest.mark.parametrize(
    ("arguments", "rank", "said"),
    [
        (["fit", "--epochs", "1"], None, "loading PyTorch\n"),
        (["all"], "0", "loading PyTorch\n"),
        (["fit"], "1", ""),
        (["show", "all"], None, ""),
        ([], None, ""),
    ],
)
def test_a_long_command_says_at_once_that_it_begins(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    rank: str | None,
    said: str,
) -> None:
    called: list[str] = []
    monkeypatch.setattr(command_line, "main", lambda: called.append(capsys.readouterr().err))
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    program.main()
    assert called == [said]
