"""What the linter of the page's code needs."""

import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT


def test_without_node_make_lint_says_so_in_one_line(tmp_path: Path) -> None:
    make = shutil.which("make")
    assert make is not None
    ended = subprocess.run([make, "lint"], cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert ended.returncode != 0
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert "needs Node and npm (Debian: apt-get install nodejs npm)" in ended.stderr
