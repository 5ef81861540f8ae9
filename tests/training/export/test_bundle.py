import io
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file

from app.bundle.manifest import Architecture, Manifest, sha256
from app.bundle.names import MANIFEST, PICTURES
from app.bundle.reader import Bundle, BundleError
from app.network.mobilenet import count_macs, mobilenet_v2
from app.network.served import ServedNetwork
from tests.training.tiny import TINY, lively_weights
from training import atomic_files
from training.config import Config
from training.data.cifar10 import Dataset
from training.errors import TrainingError
from training.evaluate.abstention import METHODS
from training.evaluate.evaluate import Sources, evaluate, saved_evaluation
from training.evaluate.leave_two_out import write_near
from training.export.bundle import VERSION, bundle_name, check_parity, check_target, export
from training.export.graph import build_graph, run_graph
from training.fit.run_folder import LOGITS, REPORT, FinishedRun

FILES = {
    *(
        "bundle.json",
        "model.onnx",
        "checkpoint.safetensors",
        "report.json",
        "report.txt",
        "history.csv",
    ),
    *("split.json", "README.md", *PICTURES),
}


def dataset(folder: Path) -> Dataset:
    return Dataset(folder, download=False)


def write(run_dir: Path, bundle: Path, force: bool = False) -> Manifest:
    return export(FinishedRun.read(run_dir), dataset(bundle.parent), bundle, force=force)


def listing(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "models" / "mobilenet_v2_cifar10"


@pytest.fixture(autouse=True)
def without_pictures(quick_pictures: None) -> None:
    """Only `finished_bundle` has real pictures."""


@pytest.fixture
def written(finished_bundle: Path) -> Bundle:
    return Bundle.load(finished_bundle)


def test_the_bundle_is_whole(run_dir: Path, finished_bundle: Path, written: Bundle) -> None:
    manifest, run = written.manifest, FinishedRun.read(run_dir)
    assert set(listing(finished_bundle.parent)) == {f"{finished_bundle.name}/{name}" for name in FILES}
    assert set(manifest.files) == FILES - {MANIFEST}

    assert manifest.name == "mobilenet_v2_cifar10_strides_2_2"
    assert manifest.version == f"{VERSION}+{run.weights_sha256[:8]}"
    assert manifest.files["checkpoint.safetensors"] == run.weights_sha256
    assert manifest.architecture == TINY.architecture
    assert (manifest.macs, manifest.parameters) == (6_124_928, 2_236_682)
    assert (manifest.classes[3], len(manifest.classes)) == ("cat", 10)

    origin = manifest.provenance
    assert origin["config"] == TINY.as_dict()
    assert origin["initial_weights"] == f"sha256:{sha256(lively_weights())}"
    assert origin["data"] == {"train": run.train_data, "select": run.selection_data}
    assert origin["seeds"] == {"run": 0, "split": 0}
    assert origin["split"] == {"file": "split.json", "train": 30, "select": 20, "calibrate": 20}
    assert {"created", "git_commit", "versions", "hardware", "cpu_hours"} <= set(origin)

    split = json.loads(written.read("split.json"))
    assert sorted(split["train"] + split["select"] + split["calibrate"]) == list(range(70))
    for name in ("report.json", "report.txt", "history.csv"):
        assert written.read(name) == (run_dir / name).read_bytes()
    for picture in PICTURES:
        assert Image.open(io.BytesIO(written.read(picture))).format == "PNG"


def test_networks_of_different_costs_have_different_names() -> None:
    fields = itertools.product((1, 2), (1, 2), (1, 2, 4))
    all_of_them = [
        Architecture.model_validate({"stem_stride": stem, "stage2_stride": stage2, "enlarge": enlarge})
        for stem, stage2, enlarge in fields
    ]
    costs: dict[str, set[int]] = {}
    for architecture in all_of_them:
        costs.setdefault(bundle_name(architecture), set()).add(count_macs(mobilenet_v2(architecture)))
    assert len(costs) == 11
    assert all(len(cost) == 1 for cost in costs.values())
    assert bundle_name(Config().architecture) == "mobilenet_v2_cifar10"
    for small in (
        Architecture(stem_stride=1, stage2_stride=2),
        Architecture(stem_stride=2, stage2_stride=2, enlarge=2),
    ):
        assert bundle_name(small) == "mobilenet_v2_cifar10_small"
    assert bundle_name(Architecture(stem_stride=2, enlarge=2)) == "mobilenet_v2_cifar10_enlarged_2_strides_2_1"


def test_the_self_check_is_a_selection_image_and_its_logits(written: Bundle, run_dir: Path, tmp_path: Path) -> None:
    check = written.manifest.self_check
    image = np.asarray(Image.open(io.BytesIO(check.image)))
    images, parts = FinishedRun.read(run_dir).data(dataset(tmp_path))
    assert np.array_equal(image, images.images[parts.select[0]])
    graph = written.read("model.onnx")
    assert run_graph(graph, image[None])[0] == pytest.approx(check.logits, abs=1e-6)
    assert check.ood_score is None


def test_the_manifest_says_what_trust_needs(written: Bundle, run_dir: Path) -> None:
    manifest, report, saved = written.manifest, written.report, saved_evaluation(FinishedRun.read(run_dir))
    assert saved is not None and manifest.calibration is not None and manifest.calibration.conformal is not None
    assert report.conformal is not None and report.abstention is not None and report.calibration is not None
    levels = [(level.coverage, level.threshold) for level in manifest.calibration.conformal.levels]
    assert levels == [(level.coverage, level.threshold) for level in report.conformal.levels]
    assert manifest.calibration.temperature == report.calibration.temperature
    assert manifest.abstention is not None and manifest.abstention.threshold == report.abstention.threshold
    assert manifest.reference is not None and sum(manifest.reference.confidence) == 20


def test_the_report_is_the_run_s_with_all_that_evaluate_was_given(run_dir: Path, tmp_path: Path, fashion: Path) -> None:
    write_near(tmp_path / "near.json", TINY, {name: [0.9, 0.8, 0.7, 0.6, 0.5] for name in METHODS})
    near, reads = tmp_path / "near.json", tmp_path / "reads.csv"
    evaluate(FinishedRun.read(run_dir), dataset(tmp_path), reads, Sources(near, fashion))
    write(run_dir, tmp_path / "bundle")
    exported = Bundle.load(tmp_path / "bundle")
    assert exported.read("report.json") == (run_dir / "report.json").read_bytes()
    assert exported.report.abstention is not None
    assert all(one.near_mean and "fashion_mnist" in one.far for one in exported.report.abstention.methods)


def test_the_checkpoint_holds_the_averaged_weights_under_torchvision_s_names(written: Bundle, run_dir: Path) -> None:
    weights, state = load(written.read("checkpoint.safetensors")), load_file(run_dir / "state.safetensors")
    assert weights.keys() == mobilenet_v2(Architecture()).state_dict().keys()
    assert all(torch.equal(value, state[f"averaged.{name}"]) for name, value in weights.items())


def test_the_same_run_gives_the_same_files(run_dir: Path, tmp_path: Path, written: Bundle) -> None:
    files = write(run_dir, tmp_path / "again").files
    assert {name for name in files if files[name] != written.manifest.files[name]} == set(PICTURES)  # not drawn here


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_without_parity_nothing_is_written(
    run_dir: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(
        "training.export.bundle.run_graph",
        lambda graph, images, *_: np.full((len(images), 10, 1, 1), value, np.float32),
    )
    with pytest.raises(TrainingError, match=r"logits .* differ from PyTorch's by .* on 20 images, 0.0001 is allowed"):
        write(run_dir, bundle)
    assert listing(bundle.parent) == {}


def test_parity_is_of_logits_and_class_maps(run_dir: Path, tmp_path: Path) -> None:
    run = FinishedRun.read(run_dir)
    images, _ = run.data(dataset(tmp_path))
    model = run.model()
    served = ServedNetwork(model)
    graph = build_graph(served).SerializeToString()
    differences = check_parity(served, graph, images.images)
    assert set(differences) == {"logits", "class_maps"} and max(differences.values()) < 1e-4
    with torch.no_grad():
        model.network.get_parameter("classifier.1.bias")[4] += 2e-4
    with pytest.raises(TrainingError, match=r"logits of the ONNX graph differ from PyTorch's by 0.0002"):
        check_parity(served, graph, images.images)


def test_logits_that_are_large_may_differ_by_more(run_dir: Path, tmp_path: Path) -> None:
    run = FinishedRun.read(run_dir)
    images, _ = run.data(dataset(tmp_path))
    model = run.model()
    bias = model.network.get_parameter("classifier.1.bias")
    with torch.no_grad():
        bias[0] = 1000
    served = ServedNetwork(model)
    graph = build_graph(served).SerializeToString()
    with torch.no_grad():
        bias[4] += 5e-4
    assert check_parity(served, graph, images.images)["logits"] > 4e-4
    with torch.no_grad():
        bias[4] += 1e-3
    with pytest.raises(TrainingError, match=r"0.0015 on 70 images, 0.001 is allowed"):
        check_parity(served, graph, images.images)
    with torch.no_grad():
        bias[4] = torch.inf
    with pytest.raises(TrainingError, match=r"logits of the ONNX graph differ"):
        check_parity(served, graph, images.images)


def test_batches_do_not_change_what_the_graph_says(run_dir: Path, tmp_path: Path) -> None:
    run = FinishedRun.read(run_dir)
    images, _ = run.data(dataset(tmp_path))
    graph = build_graph(ServedNetwork(run.model())).SerializeToString()
    whole, parts = (run_graph(graph, images.images[:7].numpy(), batch_size=size) for size in (7, 3))
    assert whole == pytest.approx(parts, abs=1e-5)


def test_a_bundle_is_replaced_only_with_force(run_dir: Path, bundle: Path) -> None:
    first = write(run_dir, bundle)
    before = listing(bundle.parent)
    with pytest.raises(TrainingError, match="exists: --force replaces it, or name another folder"):
        write(run_dir, bundle)
    assert listing(bundle.parent) == before
    shutil.copy(bundle / "README.md", bundle / "left over")
    assert write(run_dir, bundle, force=True).files == first.files
    assert set(listing(bundle)) == FILES


def test_a_folder_of_other_files_is_never_replaced(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(TrainingError, match="holds no bundle but other files: name another folder"):
        write(run_dir, tmp_path / "home", force=True)
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_an_empty_folder_may_be_used(run_dir: Path, bundle: Path) -> None:
    bundle.mkdir(parents=True)
    write(run_dir, bundle)
    assert set(listing(bundle)) == FILES


def test_a_link_to_a_bundle_stays_a_link(run_dir: Path, tmp_path: Path) -> None:
    write(run_dir, tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    write(run_dir, tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink() and set(listing(tmp_path / "real")) == FILES


def fail_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    write_through = atomic_files._write_through

    def fail(path: Path, content: bytes) -> None:
        if path.name == "reliability.png":
            raise OSError(28, "No space left on device")
        write_through(path, content)

    monkeypatch.setattr(atomic_files, "_write_through", fail)


def fail_to_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise BundleError(f"{folder.name} is damaged")

    monkeypatch.setattr(Bundle, "load", fail)


@pytest.mark.parametrize(
    ("fail", "said"), [(fail_to_write, "cannot write --bundle .*No space left"), (fail_to_verify, "is damaged")]
)
def test_a_failed_export_leaves_the_old_bundle(
    run_dir: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[pytest.MonkeyPatch], None],
    said: str,
) -> None:
    write(run_dir, bundle)
    before = listing(bundle.parent)
    fail(monkeypatch)
    with pytest.raises(TrainingError, match=said):
        write(run_dir, bundle, force=True)
    assert listing(bundle.parent) == before
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_run_must_be_evaluated_first(run_dir: Path, bundle: Path) -> None:
    run = FinishedRun.read(run_dir)
    other = replace(run, weights=run.weights + b" ")
    with pytest.raises(TrainingError, match=r"was not evaluated: `python -m training evaluate --run-dir"):
        export(other, dataset(bundle.parent), bundle, force=False)
    report = json.loads((run_dir / REPORT).read_bytes())
    report["robustness"]["mean_accuracy"] /= 2  # as in a report of earlier weights
    for content in (json.dumps(report), "{}"):
        (run_dir / REPORT).unlink()
        (run_dir / REPORT).write_text(content)
        with pytest.raises(TrainingError, match="was not evaluated"):
            write(run_dir, bundle)
    (run_dir / LOGITS).unlink()
    with pytest.raises(TrainingError, match="was not evaluated"):
        write(run_dir, bundle)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "bundle", tmp_path / "file" / "deep" / "bundle"):
        with pytest.raises(TrainingError, match=r"cannot write --bundle .*name a folder that can be written"):
            check_target(folder, force=False)
    with pytest.raises(TrainingError, match="is a file"):
        check_target(tmp_path / "file", force=True)


def test_checking_the_target_leaves_nothing_behind(bundle: Path) -> None:
    check_target(bundle, force=False)
    assert list(bundle.parent.iterdir()) == []
