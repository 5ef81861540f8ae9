"""The tiny run with 8-bit integers, from its bundle and from its folder, through all commands."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from app.bundle.manifest import MOST_TOLERANCE, TOLERANCE, sha256
from app.bundle.names import CHECKPOINT, GRAPH
from app.bundle.reader import Bundle
from app.inference.sessions import SessionError, load_session
from app.settings import Settings
from tests.training.conftest import Answer
from training.errors import TrainingError
from training.evaluate.compare import read_model
from training.evaluate.evaluate import saved_evaluation
from training.evaluate.network_outputs import FloatNetwork, answering
from training.export import quantisation
from training.export.graph import FEATURES, run_graph, takes_any_size, with_features
from training.export.quantisation import check_quantised, rounding_tolerance
from training.fit.run_folder import WEIGHTS, FinishedRun
from training.fit.teachers import read_teacher
from training.gpu.learners import trained

Command = Callable[..., Answer]


@pytest.fixture(autouse=True)
def without_pictures(quick_pictures: None) -> None:
    """They are the float bundle's."""


@pytest.fixture(scope="module")
def quantised_once() -> dict[str, bytes]:
    """The files of the quantised run, which each test gets a copy of."""
    return {}


@pytest.fixture
def integers(
    quantised_once: dict[str, bytes], finished_bundle: Path, tiny_data: None, tmp_path: Path, command: Command
) -> Path:
    """The folder of the quantised run, not evaluated."""
    folder = tmp_path / "int8"
    if not quantised_once:
        answer = command("quantise", finished_bundle, "--run-dir", folder, "--threads", "1")
        assert answer.code == 0, answer.err
        version = Bundle.load(finished_bundle).manifest.version
        assert answer.out == (
            f"{folder}: {finished_bundle.name} {version} with 8-bit integers, by 30 training images\n"
        )
        quantised_once |= {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.mkdir(exist_ok=True)
    for name, content in quantised_once.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_quantised_run_is_evaluated_exported_and_served(
    integers: Path, finished_bundle: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny network has learned nothing, so its labels hang on the last digits.
    monkeypatch.setattr(quantisation, "AGREEMENT", 0.2)
    run, log, bundle = FinishedRun.read(integers), tmp_path / "reads.csv", tmp_path / "bundle"
    assert run.graph is not None and run.weights_sha256 == sha256(run.graph)
    common = ("--run-dir", integers, "--threads", "1")
    evaluated = command("evaluate", *common, "--test-reads", log, "--near", tmp_path / "none.json")
    assert evaluated.code == 0, evaluated.err
    with log.open() as file:
        assert [row["weights_sha256"] for row in csv.DictReader(file)] == [run.weights_sha256] * 2
    saved = saved_evaluation(run)
    assert saved is not None
    of_floats = FloatNetwork(run.model()).logits
    images = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)
    assert torch.equal(answering(run).logits(images), torch.from_numpy(run_graph(run.graph, images.numpy())))
    assert not torch.equal(answering(run).logits(images), of_floats(images))

    assert command("export", *common, "--bundle", bundle).code == 0
    written, source = Bundle.load(bundle), Bundle.load(finished_bundle)
    manifest = written.manifest
    assert written.read(GRAPH) == run.graph and CHECKPOINT not in written
    assert manifest.name == f"{source.manifest.name}_int8"
    assert manifest.version.endswith(f"+{run.weights_sha256[:8]}")
    assert (
        manifest.quantisation is not None and manifest.quantisation.source_sha256 == source.manifest.files[CHECKPOINT]
    )
    assert manifest.quantisation.source == f"{source.manifest.name} {source.manifest.version}"
    assert TOLERANCE <= manifest.self_check.tolerance <= MOST_TOLERANCE
    kept = ("config", "data", "initial_weights", "cpu_hours", "git_commit")
    assert all(manifest.provenance[name] == source.manifest.provenance[name] for name in kept)
    assert written.report.history == source.report.history
    card = (bundle / "README.md").read_text()
    assert "8-bit integers" in card and "load_file" not in card and "onnx, int8]" in card
    assert command("card", bundle).code == 0

    load_session(Settings(_env_file=None, model_dir=bundle))
    with pytest.raises(SessionError, match="ENGINE=torch cannot run .*_int8, a graph of 8-bit integers: ENGINE=onnx"):
        load_session(Settings(_env_file=None, model_dir=bundle, engine="torch"))
    with pytest.raises(TrainingError, match="is quantised and holds no weights for PyTorch"):
        trained(bundle, 0)
    again = command("quantise", bundle, "--run-dir", tmp_path / "again")
    assert again.code == 1 and "is quantised already" in again.err and not (tmp_path / "again").exists()


def test_the_commands_for_runs_take_it(integers: Path, run_dir: Path, tmp_path: Path, command: Command) -> None:
    shown = command("show", integers)
    assert shown.code == 0 and "mobilenet_v2_cifar10_strides_2_2_int8" in shown.out
    graph = (integers / GRAPH).read_bytes()
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    assert np.array_equal(read_model(integers, 0)(images).numpy(), run_graph(graph, images.numpy()))
    assert read_teacher(integers, 0) == graph
    compared = command("compare", run_dir, integers, "--threads", "1")
    assert compared.code in (0, 1) and "McNemar" in compared.out
    refused = command("quantise", integers, "--run-dir", tmp_path / "again")
    assert refused.code == 1 and "is quantised already" in refused.err
    refused = command("quantise", run_dir, "--run-dir", integers)
    assert refused.code == 1 and "exists: name another folder" in refused.err


def test_a_run_and_its_bundle_give_the_same_graph(
    integers: Path, run_dir: Path, tmp_path: Path, command: Command
) -> None:
    assert command("quantise", run_dir, "--run-dir", tmp_path / "other", "--threads", "1").code == 0
    assert (tmp_path / "other" / GRAPH).read_bytes() == (integers / GRAPH).read_bytes()
    assert (tmp_path / "other" / WEIGHTS).read_bytes() == (run_dir / WEIGHTS).read_bytes()
    records = [json.loads((folder / "run.json").read_bytes()) for folder in (integers, run_dir)]
    assert records[0]["quantisation"]["calibration_images"] == 30 and "quantisation" not in records[1]


def test_photographs_need_a_graph_that_takes_them(integers: Path, tmp_path: Path, command: Command) -> None:
    record = json.loads((integers / "run.json").read_bytes())
    record["config"]["enlarge"] = 2  # whose photographs are larger than thumbnails
    (integers / "run.json").write_text(json.dumps(record))
    arguments = ("--run-dir", integers, "--test-reads", tmp_path / "reads.csv", "--near", tmp_path / "none.json")
    answer = command("evaluate", *arguments, "--photographs", tmp_path, "--threads", "1")
    assert answer.code == 1 and "takes no photographs: quantise what was evaluated with --photographs" in answer.err
    assert not (tmp_path / "reads.csv").exists()


def test_no_two_products_exceed_16_bits(integers: Path) -> None:
    weights = [
        numpy_helper.to_array(tensor).astype(int)
        for tensor in onnx.load(integers / GRAPH).graph.initializer
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert len(weights) == 52 - quantisation.FLOATS
    flat = [np.abs(one).reshape(len(one), -1) for one in weights]
    assert max(one.max() for one in flat) == 127
    pairs = [one[:, 0::2] + one[:, 1::2] for one, weight in zip(flat, weights, strict=True) if weight.shape[1] > 1]
    assert 100 < max(pair.max() for pair in pairs) <= 128


def test_features_are_what_the_last_layer_works_on(integers: Path) -> None:
    graph = (integers / GRAPH).read_bytes()
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    features, logits = run_graph(with_features(graph), images, FEATURES), run_graph(graph, images)
    tensors = {one.name: numpy_helper.to_array(one) for one in onnx.load_from_string(graph).graph.initializer}
    expected = features @ tensors["classifier.1.weight"].T + tensors["classifier.1.bias"]
    assert logits == pytest.approx(expected, abs=1e-4)
    assert not takes_any_size(graph)


def test_a_damaged_graph_is_one_line(integers: Path, command: Command) -> None:
    graph = integers / GRAPH
    graph.write_bytes(graph.read_bytes()[:-1])
    answer = command("evaluate", "--run-dir", integers)
    assert answer.code == 1
    assert answer.err == f"error: {integers} holds a damaged run ({GRAPH} is not the graph that was made)\n"
    graph.unlink()
    assert command("evaluate", "--run-dir", integers).err == f"error: {integers} holds a run without {GRAPH}\n"


@pytest.mark.parametrize("source", ["nowhere", "hf://owner/name"])
def test_what_is_no_source_is_refused(tmp_path: Path, command: Command, source: str) -> None:
    answer = command("quantise", source, "--run-dir", tmp_path / "int8")
    assert answer.code == 1 and "holds neither a bundle nor a run" in answer.err
    assert not (tmp_path / "int8").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(finished_bundle: Path, command: Command) -> None:
    folder = finished_bundle / GRAPH / "x"
    answer = command("quantise", finished_bundle, "--run-dir", folder)
    assert answer.code == 1 and answer.err.startswith(f"error: --run-dir {folder} cannot be used (")


def test_another_network_s_graph_is_refused(integers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FinishedRun.read(integers)
    assert run.graph is not None
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8))
    with pytest.raises(TrainingError, match="the graph takes photographs: evaluate the run with --photographs"):
        check_quantised(run.model(), run.graph, images, any_size=True)
    other = replace(run).model()
    with torch.no_grad():
        other.network.get_parameter("classifier.1.bias")[run_graph(run.graph, images.numpy()).argmin() % 10] += 1000
    with pytest.raises(TrainingError, match=r"gives .*% of 20 images the label .* 95% is needed: nothing was written"):
        check_quantised(other, run.graph, images, any_size=False)
    monkeypatch.setattr(quantisation, "MOST_TOLERANCE", 0)
    monkeypatch.setattr(
        quantisation, "run_graph", lambda graph, images, optimised=True: np.full((2, 10), float(optimised))
    )
    with pytest.raises(TrainingError, match="logits change by 1 with the way of rounding, 0 is allowed"):
        rounding_tolerance(run.graph, list(images[:2].numpy()))


def test_a_filter_of_zeros_has_a_scale() -> None:
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[1, 2] = 0.5
    first, second = quantisation._ranges(weight)
    assert first["rmax"] > 0 and second["rmax"] == 0.5 == -second["rmin"]
