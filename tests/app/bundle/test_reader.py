import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.bundle.reader import Bundle, BundleError, manifest_digest, render_manifest, sha256
from tests.conftest import BUNDLE, SMALL_BUNDLE


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))


@pytest.fixture
def rewrite(copy: Path) -> Callable[..., Path]:
    """Change the manifest of a copy as somebody would who also keeps its digest right."""

    def change(**changes: Any) -> Path:
        fields = json.loads((copy / "bundle.json").read_bytes()) | changes
        fields["digest"] = manifest_digest(fields)
        (copy / "bundle.json").write_bytes(render_manifest(fields))
        return copy

    return change


@pytest.mark.parametrize("folder", [BUNDLE, SMALL_BUNDLE], ids=lambda folder: folder.name)
def test_the_shipped_bundles_are_whole(folder: Path) -> None:
    bundle = Bundle.load(folder)
    assert bundle.manifest.name == folder.name
    assert len(bundle.manifest.classes) == 10
    assert bundle.report.n == 10_000
    weights = sha256(bundle.read("checkpoint.safetensors"))
    assert re.fullmatch(rf"\d+\.\d+\.\d+\+{weights[:8]}", bundle.manifest.version)
    assert {path.name for path in folder.iterdir()} == {"bundle.json", *bundle.manifest.files}


def names() -> list[str]:
    return sorted(path.name for path in BUNDLE.iterdir())


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_one_changed_byte_in_any_file_is_noticed(copy: Path, name: str, where: float) -> None:
    content = bytearray((copy / name).read_bytes())
    content[min(int(len(content) * where), len(content) - 1)] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=name) as refused:
        Bundle.load(copy)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", names())
def test_a_missing_file_is_noticed(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.load(copy)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        Bundle.load(tmp_path / "nowhere")


def test_white_space_counts(copy: Path) -> None:
    path = copy / "bundle.json"
    path.write_bytes(path.read_bytes().replace(b'  "name"', b' \t"name"', 1))
    with pytest.raises(BundleError, match="damaged"):
        Bundle.load(copy)


def test_an_unknown_schema_version_is_refused(rewrite: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match="schema_version is 2"):
        Bundle.load(rewrite(schema_version=2))


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"null", b'{"schema_version": 1}'])
def test_what_is_not_a_manifest_is_refused(copy: Path, content: bytes) -> None:
    (copy / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["one"]},
        {"macs": 0},
        {"architecture": {"name": "resnet"}},
        {"surprise": 1},
        {"calibration": {"temperature": 0}},
        {"abstention": {"method": "novelty", "threshold": float("nan"), "kept": 0.95}},
        {"abstention": {"method": "novelty", "threshold": float("inf"), "kept": 0.95}},
        {"abstention": {"method": "novelty", "threshold": 10**400, "kept": 0.95}},
        {"provenance": {"cpu_hours": float("nan")}},
        {"files": {}},
        {"files": {"../../etc/passwd": "0" * 64}},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(rewrite: Callable[..., Path], changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json"):
        Bundle.load(rewrite(**changes))


def not_a_number() -> bytes:
    report = json.loads((BUNDLE / "report.json").read_bytes())
    report["abstention"]["threshold"] = float("nan")
    return json.dumps(report).encode()


@pytest.mark.parametrize("content", [b"{}", not_a_number()], ids=["empty", "NaN"])
def test_a_report_of_another_form_is_refused(copy: Path, rewrite: Callable[..., Path], content: bytes) -> None:
    (copy / "report.json").write_bytes(content)
    files = json.loads((copy / "bundle.json").read_bytes())["files"] | {"report.json": sha256(content)}
    with pytest.raises(BundleError, match=r"report\.json"):
        Bundle.load(rewrite(files=files))


def test_the_digest_does_not_depend_on_the_order_of_fields() -> None:
    assert manifest_digest({"a": 1, "b": 2, "digest": "x"}) == manifest_digest({"b": 2, "a": 1})
    assert manifest_digest({"a": 1}) != manifest_digest({"a": 2})


def test_forgotten_files_are_gone() -> None:
    bundle = Bundle.load(BUNDLE)
    assert "model.onnx" in bundle
    bundle.forget("model.onnx")
    assert "model.onnx" not in bundle
    with pytest.raises(KeyError):
        bundle.read("model.onnx")
