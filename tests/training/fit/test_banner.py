"""What a run is, on a line each."""

import io

import pytest
from rich.console import Console

from training.fit.banner import tell


@pytest.mark.parametrize(
    ("what", "said"), [("run", "run     6, of other things\n"), ("photographs", "photographs 6, of other things\n")]
)
def test_a_space_is_before_what_is_told(what: str, said: str) -> None:
    file = io.StringIO()
    tell(Console(file=file), what, "6, of other things")
    assert file.getvalue() == said
