"""The wheel, installed in an environment that has the dependencies and nothing else of ours."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from app import __version__
from tests.app.server import serve
from tests.conftest import BUNDLE, DATA, ROOT

PACKAGE = "cifar10_classifier"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves files in its folder, and would take in those of an older one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in ("app", "training", "models"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet")
    command = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def programs(wheel: Path) -> Path:
    """The folder of programs of a fresh environment with the wheel; the dependencies are those of the tests."""
    folder = wheel.parent / "environment"
    venv.create(folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # A folder that a .pth file names is searched last, and its own .pth files, an editable install, are ignored.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet"]
    offline = ("--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check")
    subprocess.run([*command, *offline, str(wheel)], check=True, capture_output=True, timeout=100)
    return folder / "bin"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a package `app` of its own, a thumbnail, and a picture that needs a decoding process."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/__init__.py").write_text("owner = 'the project'\n")
    shutil.copy(DATA / "cat.png", tmp_path)
    with Image.open(DATA / "cat.png") as picture:
        picture.convert("RGB").resize((300, 200)).save(tmp_path / "photo.avif")
    return tmp_path


def expected(client: TestClient, path: Path) -> dict[str, object]:
    """The service's answer, from the clone."""
    answer = client.post("/predict", content=path.read_bytes()).json()
    return {name: value for name, value in answer.items() if name not in ("model", "timing_ms")}


def run(command: Sequence[str | Path], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_wheel_holds_one_package_with_the_default_model(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {PACKAGE, f"{PACKAGE}-{__version__}.dist-info"}
    held = {name.removeprefix(f"{PACKAGE}/") for name in names}
    assert {f"models/{BUNDLE.name}/{path.name}" for path in BUNDLE.iterdir()} <= held
    assert {name.split("/")[1] for name in held if name.startswith("models/")} == {BUNDLE.name}
    files = {str(path.relative_to(ROOT / "app")) for path in (ROOT / "app").rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= held


def test_every_package_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "app").rglob("__init__.py")}
    code = {name.replace("/", ".").replace("app", PACKAGE, 1) for name in there}
    assert set(settings["packages"]) == code | {f"{PACKAGE}.models.{BUNDLE.name}"}


def test_the_installed_service_gives_the_same_answers(programs: Path, project: Path, client: TestClient) -> None:
    command = (str(programs / "cifar10-classifier"), "serve", "--port", "0", "--host", "127.0.0.1")
    with serve(command=command, folder=project, PORT="many") as (_, installed):
        for name in ("cat.png", "photo.avif"):
            answer = installed.post("/predict", content=(project / name).read_bytes()).json()
            answer = {field: value for field, value in answer.items() if field not in ("model", "timing_ms")}
            assert answer == expected(client, project / name)
        assert installed.get("/").status_code == installed.get("/assets/web/main.js").status_code == 200


def test_the_installed_command_classifies(programs: Path, project: Path, client: TestClient) -> None:
    said = run(
        [programs / "cifar10-classifier", "classify", "--json", "--top-k", "5", "cat.png", "photo.avif"], project
    )
    for line in map(json.loads, said.splitlines()):
        assert line == {"path": line["path"], **expected(client, project / line["path"])}
    assert len(said.splitlines()) == 2


def test_a_program_with_an_app_of_its_own_classifies(programs: Path, project: Path, client: TestClient) -> None:
    (project / "program.py").write_text(
        "import app, cifar10_classifier\n"
        "classifier = cifar10_classifier.load()\n"
        "print(classifier('photo.avif').model_dump_json())\n"
        "print(app.owner, 'training' in __import__('sys').modules)\n"
    )
    answer, owner = run([programs / "python", "program.py"], project).splitlines()
    assert json.loads(answer) == expected(client, project / "photo.avif")
    assert owner == "the project False"
