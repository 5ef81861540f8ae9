import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.bundle.manifest import manifest_digest, sha256
from app.bundle.reader import Bundle, BundleError
from tests.app.forged import forge
from tests.conftest import BUNDLE, INT8_BUNDLE, SMALL_BUNDLE


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))


@pytest.fixture
def rewrite(tmp_path: Path) -> Callable[..., Path]:
    """A copy with a changed manifest, or with other files, and with digests that are right."""
    return partial(forge, tmp_path / "forged")


@pytest.mark.parametrize("folder", [BUNDLE, SMALL_BUNDLE, INT8_BUNDLE], ids=lambda folder: folder.name)
def test_the_shipped_bundles_are_intact(folder: Path) -> None:
    bundle = Bundle.load(folder)
    assert bundle.manifest.name == folder.name
    assert len(bundle.manifest.classes) == 10
    assert bundle.report.n == 10_000
    weights = sha256(bundle.read("model.onnx" if bundle.manifest.quantisation else "checkpoint.safetensors"))
    assert re.fullmatch(rf"\d+\.\d+\.\d+\+{weights[:8]}", bundle.manifest.version)
    assert {path.name for path in folder.iterdir()} == {"bundle.json", *bundle.manifest.files}


def test_only_a_graph_of_integers_needs_no_checkpoint(rewrite: Callable[..., Path]) -> None:
    kept = {name: digest for name, digest in SHIPPED["files"].items() if name != "checkpoint.safetensors"}
    with pytest.raises(BundleError, match=r"files: checkpoint.safetensors is missing"):
        Bundle.load(rewrite(files=kept))
    made = json.loads((INT8_BUNDLE / "bundle.json").read_bytes())["quantisation"]
    assert "checkpoint.safetensors" not in Bundle.load(rewrite(files=kept, quantisation=made))
    with pytest.raises(BundleError, match=r"quantisation.weight_bits: .*less than or equal to 8"):
        Bundle.load(rewrite(files=kept, quantisation=made | {"weight_bits": 9}))
    kept.pop("model.onnx")
    with pytest.raises(BundleError, match=r"files: model.onnx is missing"):
        Bundle.load(rewrite(files=kept, quantisation=made))


@pytest.mark.parametrize("tolerance", [0.009, 0.51])
def test_the_tolerance_of_the_self_check_is_bounded(rewrite: Callable[..., Path], tolerance: float) -> None:
    with pytest.raises(BundleError, match=r"self_check.tolerance: "):
        Bundle.load(rewrite(self_check=SELF_CHECK | {"tolerance": tolerance}))


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


def test_changed_white_space_is_noticed(copy: Path) -> None:
    path = copy / "bundle.json"
    path.write_bytes(path.read_bytes().replace(b'  "name"', b' \t"name"', 1))
    with pytest.raises(BundleError, match="damaged"):
        Bundle.load(copy)


def test_an_unknown_schema_version_is_refused(rewrite: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match="schema_version is 2"):
        Bundle.load(rewrite(schema_version=2))


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"null", b'{"schema_version": 1}'])
def test_a_file_that_is_not_a_manifest_is_refused(copy: Path, content: bytes) -> None:
    (copy / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        Bundle.load(copy)


PHOTOGRAPHS = json.loads((BUNDLE / "bundle.json").read_bytes())["photographs"]
UNSCORED = PHOTOGRAPHS | {"abstention": PHOTOGRAPHS["abstention"] | {"temperature": None}}


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
        *(
            {"abstention": {"method": "entropy", "temperature": t, "threshold": 2, "kept": 0.95}}
            for t in (1e-300, 1e308)
        ),
        {"photographs": UNSCORED},
        {"provenance": {"cpu_hours": float("nan")}},
        {"files": {}},
        {"files": {"../../etc/passwd": "0" * 64}},
    ],
)
def test_an_invalid_manifest_is_refused(rewrite: Callable[..., Path], changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json"):
        Bundle.load(rewrite(**changes))


def nested(depth: int) -> dict[str, Any]:
    innermost: dict[str, Any] = {}
    for _ in range(depth):
        innermost = {"in": innermost}
    return innermost


@pytest.mark.parametrize("depth", [300, 900])
def test_a_manifest_that_nests_too_deeply_to_be_answered_is_refused(rewrite: Callable[..., Path], depth: int) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json") as refused:
        Bundle.load(rewrite(provenance=nested(depth)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        b'{"schema_version": 1, "a": ' + b"[" * 100_000,
        b'{"schema_version": 1, "a": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
        b'{"schema_version": 1, "name": "\\ud800"}',
        b'{"schema_version": 1, "\\udfff": 1}',
        b'{"schema_version": 1, "macs": ' + b"9" * 5000 + b"}",
        b'{"schema_version": "' + b"x" * 100_000 + b'"}',
        b'{"schema_version": "\\n\\n"}',
        '{"schema_version": 1}'.encode("utf-16"),
        b"\0" * 100,
    ],
    ids=["open brackets", "deep", "surrogate", "surrogate as a name", "long number", "long", "lines", "UTF-16", "NUL"],
)
def test_json_that_python_cannot_hold_is_refused_with_one_short_line(copy: Path, content: bytes) -> None:
    (copy / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json") as refused:
        Bundle.load(copy)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < len(str(copy)) + 300


SHIPPED = json.loads((BUNDLE / "bundle.json").read_bytes())
SELF_CHECK, REFERENCE = SHIPPED["self_check"], SHIPPED["reference"]
NINE = SELF_CHECK | {"logits": [0.0] * 9}
CLASSES = [f"class {number}" for number in range(10)]


def with_thresholds(calibration: dict, thresholds: list[float]) -> dict:
    """A calibration whose levels have these thresholds of classes."""
    levels = [level | {"by_class": thresholds} for level in calibration["conformal"]["levels"]]
    return calibration | {"conformal": calibration["conformal"] | {"levels": levels}}


OF_PHOTOGRAPHS = with_thresholds(SHIPPED["photographs"]["calibration"], [0.5] * 11)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": CLASSES[:9]}, "9 classes, but 10 logits in self_check"),
        ({"classes": [*CLASSES, "another"]}, "11 classes, but 10 logits in self_check"),
        ({"self_check": SELF_CHECK | {"logits": []}}, "10 classes, but 0 logits in self_check"),
        ({"classes": CLASSES[:9], "self_check": NINE, "photograph_self_check": NINE}, "10 counts in reference"),
        ({"photograph_self_check": NINE}, "10 classes, but 9 logits in photograph_self_check"),
        (
            {"calibration": with_thresholds(SHIPPED["calibration"], [0.5] * 9)},
            "10 classes, but 9 thresholds in by_class",
        ),
        ({"calibration": with_thresholds(SHIPPED["calibration"], [1.5] * 10)}, "less than or equal to 1"),
        ({"photographs": SHIPPED["photographs"] | {"calibration": OF_PHOTOGRAPHS}}, "but 11 thresholds in by_class"),
        ({"photographs": None}, "photographs and photograph_self_check belong together"),
        ({"photograph_self_check": None}, "photographs and photograph_self_check belong together"),
        ({"classes": CLASSES}, r"report\.json: per_class"),
        ({"classes": [*CLASSES[:9], "class 0"]}, "different labels"),
        ({"classes": [*CLASSES[:9], ""]}, "different labels"),
        ({"reference": REFERENCE | {"predicted": [-1, *[1] * 9]}}, "counts must be from 0"),
        ({"reference": REFERENCE | {"predicted": [10**400] * 10}}, "counts must be from 0"),
        ({"reference": REFERENCE | {"confidence": [-1, *REFERENCE["confidence"][1:]]}}, "counts must be from 0"),
        ({"reference": REFERENCE | {"confidence_edges": REFERENCE["confidence_edges"][::-1]}}, "must increase"),
        ({"reference": REFERENCE | {"confidence_edges": [0.5]}}, "one more confidence edge"),
        ({"calibration": {"temperature": 1e-300}}, "temperature 1e-300 is not from"),
        ({"calibration": {"temperature": 1e300}}, r"temperature 1e\+300 is not from"),
    ],
)
def test_a_manifest_whose_parts_do_not_fit_is_refused(
    rewrite: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message) as refused:
        Bundle.load(rewrite(**changes))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["", "..", ".", "a\0b", "a" * 5000, "a\nb", "a/b", "/etc/passwd", "bundle.json"])
def test_a_folder_in_place_of_a_file_is_refused(rewrite: Callable[..., Path], name: str) -> None:
    files = json.loads((BUNDLE / "bundle.json").read_bytes())["files"] | {name: "0" * 64}
    with pytest.raises(BundleError):
        Bundle.load(rewrite(files=files))


def test_a_pipe_is_refused_and_not_waited_for(copy: Path) -> None:
    (copy / "report.txt").unlink()
    os.mkfifo(copy / "report.txt")
    with pytest.raises(BundleError, match=r"report\.txt: it is not a file"):
        Bundle.load(copy)


def test_a_file_in_place_of_the_folder_is_named() -> None:
    with pytest.raises(BundleError, match=r"README\.md.*Not a directory"):
        Bundle.load(BUNDLE / "README.md")


def report_with(change: Callable[[dict[str, Any]], None]) -> bytes:
    report = json.loads((BUNDLE / "report.json").read_bytes())
    change(report)
    return json.dumps(report).encode()


REPORTS = {
    "empty": b"{}",
    "NaN": report_with(lambda report: report["abstention"].update(threshold=float("nan"))),
    "deep": b"[" * 100_000,
    "a surrogate": report_with(lambda report: report.update(split="\ud800")),
    "not UTF-8": b'{"split": "\xff"}',
    "nothing": b"",
    "nine classes": report_with(lambda report: report["per_class"].pop()),
    "a matrix of another size": report_with(lambda report: report["confusion_matrix"].pop()),
    "a ragged matrix": report_with(lambda report: report["confusion_matrix"][3].pop()),
    "other labels": report_with(lambda report: report["per_class"][0].update(label="dog")),
}


@pytest.mark.parametrize("content", REPORTS.values(), ids=REPORTS)
def test_an_invalid_report_is_refused(rewrite: Callable[..., Path], content: bytes) -> None:
    with pytest.raises(BundleError, match=r"report\.json") as refused:
        Bundle.load(rewrite({"report.json": content}))
    assert "\n" not in str(refused.value)


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
