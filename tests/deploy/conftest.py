"""What tests of files need from outside: where tests are trusted, its absence is a failure and no reason to skip."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


class ComposeLoader(yaml.SafeLoader):
    """Knows compose's tag `!reset`: what stands behind it replaces what other files say."""


ComposeLoader.add_constructor("!reset", lambda loader, node: loader.construct_sequence(node))


def services(path: str) -> dict[str, Any]:
    """Of one compose file, alone."""
    return yaml.load((ROOT / path).read_text(), ComposeLoader)["services"]


def program(name: str, package: str) -> str:
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
