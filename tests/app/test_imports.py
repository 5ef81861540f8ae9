"""The wall: who may import whom. Serving stays light: no torch unless asked for, no FastAPI below `api`."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A district, or a module beside the districts: what of ours it may import. docs/architecture.md draws it.
ALLOWED = {
    "app": {"app.local"},  # the package itself
    "app.errors": set(),
    "app.cores": set(),
    "app.memory": set(),
    "app.settings": {"app.cores", "app.memory"},
    "app.validation_errors": set(),
    "app.image_source": set(),
    "app.bundle": {"app.validation_errors"},
    "app.network": {"app.bundle"},
    "app.sandbox": {"app.errors"},
    "app.workers": {"app.errors"},
    "app.imaging": {"app.sandbox", "app.workers", "app.errors"},
    "app.remote": {"app.bundle"},
    "app.inference": {
        *("app.bundle", "app.remote", "app.network", "app.imaging", "app.workers"),
        *("app.errors", "app.memory", "app.settings"),
    },
    "app.local_files": {"app.inference", "app.imaging", "app.bundle", "app.errors", "app.settings"},
    "app.local": {
        *("app.local_files", "app.inference", "app.imaging", "app.bundle"),
        *("app.errors", "app.image_source", "app.settings", "app.validation_errors"),
    },
    # What travels over the wire: these modules know no FastAPI.
    "app.client": {
        *("app.errors", "app.image_source", "app.api.schemas", "app.inference.answers"),
        *("app.imaging.kinds", "app.bundle"),
    },
    "app.telemetry": {"app", "app.inference"},
    "app.feedback": {"app.inference", "app.errors", "app.settings"},
    "app.api": {
        *("app", "app.feedback", "app.telemetry", "app.inference", "app.imaging", "app.bundle"),
        *("app.sandbox", "app.workers", "app.errors", "app.settings", "app.validation_errors"),
    },
    "app.process": {"app.api", "app.workers", "app.errors", "app.settings"},
    "app.main": {
        "app",
        "app.process",
        "app.api",
        "app.feedback",
        "app.telemetry",
        "app.inference",
        "app.bundle",
        "app.settings",
        "app.validation_errors",
        "app.workers",
    },
    "app.cluster": {
        *("app.main", "app.local_files", "app.process", "app.api", "app.cores"),
        *("app.inference", "app.imaging", "app.bundle", "app.errors", "app.settings"),
    },
    "app.__main__": {
        *("app", "app.main", "app.cluster", "app.local_files", "app.process", "app.telemetry", "app.api"),
        *("app.inference", "app.imaging", "app.bundle", "app.workers", "app.errors", "app.settings"),
    },
    "training": {"app.bundle", "app.network", "app.imaging", "app.inference.decisions", "app.errors", "app.cores"},
}
# Packages from outside that only these districts may import, whether at the top of a module or inside a function.
RESERVED = {
    ("fastapi", "starlette", "uvicorn"): {"app.api", "app.process", "app.cluster", "app.main"},
    ("torch", "torchvision", "safetensors"): {"app.network", "app.inference.sessions", "training"},
    ("ray",): {"app.cluster"},
    ("fsspec",): {"app.cluster", "app.remote"},
    ("huggingface_hub",): {"training"},
    ("pyarrow",): {"app.cluster", "training.data.parquet"},
    ("onnxruntime",): {"app.inference.sessions", "training"},
    ("httpx", "httpx2"): {"app.client"},
    ("opentelemetry",): {"app.telemetry", "app.api.middleware.tracing"},
    ("grpc", "grpc_health", "grpc_reflection", "google"): {"app.api.open_inference.rpc"},
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted([*(ROOT / "app").rglob("*.py"), *(ROOT / "training").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def imported(module: str) -> frozenset[str]:
    """The modules and packages that a module names, wherever in it, with relative names made absolute."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return frozenset(_names(ast.parse(path.read_text()), package))


def _names(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source


def within(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


def district(module: str) -> str:
    """The longest entry of ALLOWED that holds the module; the package `app` holds only itself."""
    return max((place for place in ALLOWED if place != "app" and within(module, place)), key=len, default="app")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_district_may(module: str) -> None:
    here = district(module)
    allowed = ALLOWED[here] | {here}
    ours = {name for name in imported(module) if name.split(".")[0] in ("app", "training")}
    assert {
        name for name in ours if not any(name == "app" if to == "app" else within(name, to) for to in allowed)
    } == set()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_no_package_reserved_for_other_districts(module: str) -> None:
    for packages, districts in RESERVED.items():
        if not any(within(module, place) for place in districts):
            assert {name for name in imported(module) if name.split(".")[0] in packages} == set()


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("app.")])
def test_imports_inside_the_application_are_relative(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    absolute = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    absolute += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert [name for name in absolute if name and name.split(".")[0] == "app"] == []


def test_the_rule_notices_an_import_that_breaks_it() -> None:
    names = set(_names(ast.parse("def f():\n    from ..api.problems import answer\n"), "app.imaging"))
    assert names == {"app.api.problems"}
    assert not any(within("app.api.problems", place) for place in ALLOWED["app.imaging"])
    assert set(_names(ast.parse("from . import decode"), "app.imaging")) == {"app.imaging.decode"}


def loaded_by(program: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after it ran the program."""
    program += "\nimport sys; print('loaded', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("loaded ")[2].split())


LIGHT = {
    "torch",
    "torchvision",
    "training",
    "safetensors",
    "httpx",
    "ray",
    "pyarrow",
    "fsspec",
    "huggingface_hub",
    "aiohttp",
    "grpc",
    "google.protobuf",
}
# FastAPI imports OpenTelemetry's interface, which does nothing alone.
LIGHT |= {"opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "requests"}


@pytest.mark.parametrize(
    ("program", "never"),
    [
        (
            "from app.main import create_app; import app.__main__; from app.settings import Settings; "
            "from app.inference.sessions import load_session; settings = Settings(); "
            "create_app(settings, load_session(settings))",
            LIGHT,
        ),
        ("import app", LIGHT | {"fastapi", "starlette", "uvicorn", "onnxruntime", "numpy", "PIL", "pydantic"}),
        ("import app.local_files", LIGHT | {"fastapi", "starlette", "uvicorn"}),
        ("import app; app.load", LIGHT | {"fastapi", "starlette", "uvicorn"}),
        ("import app.client", (LIGHT - {"httpx"}) | {"fastapi", "starlette", "uvicorn", "onnxruntime", "PIL"}),
        ("import app.imaging.decode", LIGHT | {"fastapi", "starlette", "onnxruntime", "pydantic"}),
        ("import app.network", {"fastapi", "starlette", "onnxruntime", "training"}),
        ("import training.command_line", {"fastapi", "starlette", "uvicorn", "httpx"}),
    ],
    ids=["service", "package", "local files", "local", "client", "decoder", "network", "training"],
)
def test_optional_packages_are_not_loaded_without_need(program: str, never: set[str]) -> None:
    loaded = loaded_by(program)
    assert {".".join(name.split(".")[:depth]) for name in loaded for depth in (1, 2)} & never == set()


def test_the_telemetry_of_onnx_runtime_is_off() -> None:
    program = "import app.inference.sessions, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "1"
