"""Every block of docs/clients.md runs, against a server."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.server import serve
from tests.conftest import BUNDLE, DATA, ROOT, in_a_clone

TEXT = (ROOT / "docs/clients.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [content for kind, content in BLOCKS if kind == language]


ERROR, *WORKING = blocks("sh")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serve() as (_, client):
        yield str(client.base_url).rstrip("/")


def run(program: list[str], source: str, address: str, folder: Path) -> str:
    """What the program prints when it is given the source, with two images in its folder."""
    if not shutil.which(program[0]):
        assert not os.environ.get("CI"), f"{program[0]} is missing, so the documentation goes untested"
        pytest.skip(f"needs {program[0]}")
    for name in ("cat.png", "dog.png"):
        shutil.copy(DATA / name, folder)
    done = subprocess.run(
        program,
        cwd=folder,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "MODEL_DIR": str(BUNDLE),
        },
        input=in_a_clone(source).replace("http://127.0.0.1:8000", address),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_every_code_block_is_tested() -> None:
    assert {kind for kind, _ in BLOCKS} == {"sh", "json", "python", "js", "html"}
    assert TEXT.count("```") == 2 * len(BLOCKS)


def test_an_error_is_answered_as_shown(address: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    said, shown = json.loads(run(["bash", "-eu"], ERROR, address, tmp_path)), json.loads(*blocks("json"))
    assert said == shown | {"instance": said["instance"]}


@pytest.mark.parametrize("block", WORKING)
def test_the_shell_examples_work(block: str, address: str, tmp_path: Path) -> None:
    said = run(["bash", "-eu"], block, address, tmp_path)
    assert said.count('"predictions"') + said.count("%") > 0


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_examples_work(block: str, address: str, tmp_path: Path, cat_label: str) -> None:
    assert cat_label in run([sys.executable, "-"], block, address, tmp_path)


def test_the_javascript_examples_work(address: str, tmp_path: Path, cat_label: str) -> None:
    """The blocks make one program; the page's input stands at its end, given the two images."""
    (html,) = blocks("html")
    (handler,) = re.findall(r'onchange="(.*)"', html)
    page = f"await (function () {{ return {handler} }}).call({{ files: [cat, dog] }});\n"
    said = run(["node", "--input-type=module"], "\n".join(blocks("js")) + page, address, tmp_path)
    assert f"label: '{cat_label}'" in said
    assert "\n2\n" in said
    assert "results: [" in said
