"""The service stays light: it never imports training, and torch only when ENGINE=torch asks for it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def imported(path: Path) -> set[str]:
    """The top-level packages that a module names, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_app_never_names_training() -> None:
    modules = list((ROOT / "app").rglob("*.py"))
    assert len(modules) > 15
    assert [path.name for path in modules if "training" in imported(path)] == []


def test_only_what_is_computed_in_torch_names_it() -> None:
    users = {path.name for path in (ROOT / "app").rglob("*.py") if {"torch", "torchvision"} & imported(path)}
    assert users == {"network.py", "novelty.py", "sessions.py"}


def test_only_what_runs_on_ray_names_it() -> None:
    extra = {"fsspec", "pyarrow", "ray"}
    assert {path.name for path in (ROOT / "app").rglob("*.py") if extra & imported(path)} == {"bulk.py", "cluster.py"}


def test_the_application_starts_without_torch() -> None:
    program = (
        "import sys; from app.main import create_app; import app.__main__; from app.settings import Settings; "
        "from app.inference.sessions import load_session; settings = Settings(); "
        "create_app(settings, load_session(settings)); "
        "extras = {'torch', 'torchvision', 'training', 'safetensors', 'httpx', 'ray', 'pyarrow', 'fsspec'}; "
        "print(sorted(extras & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_onnx_runtime_reports_to_nobody() -> None:
    program = "import app.inference.sessions, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "1"
