"""The external programs that tests of files need. A missing program fails the test in CI and skips it elsewhere."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


class ComposeLoader(yaml.SafeLoader):
    """A YAML loader that knows compose's tag `!reset`: its value replaces that of the other compose files."""


ComposeLoader.add_constructor("!reset", lambda loader, node: loader.construct_sequence(node))


def services(path: str) -> dict[str, Any]:
    """The services of a single compose file."""
    return yaml.load((ROOT / path).read_text(), ComposeLoader)["services"]


def program(name: str, package: str) -> str:
    """The path of the program. Skips the test if it is missing, or fails it in CI."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None and os.environ.get("CI") == "true":
        pytest.fail(f"{name} is needed (Debian: apt-get install {package})")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install {package})")
    return found


@pytest.fixture(scope="session")
def promtool() -> str:
    return program("promtool", "prometheus")


@pytest.fixture(scope="session")
def nginx_program() -> str:
    return program("nginx", "nginx-light")
