import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.mobilenetv2 import MobileNet_V2_Weights

from app.bundle.manifest import Architecture, sha256
from app.network.mobilenet import mobilenet_v2
from tests.training.tiny import TINY
from training.data.description import Description
from training.errors import TrainingError
from training.fit.initial_weights import initialise

HEAD = ("classifier.1.weight", "classifier.1.bias")


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    """Weights of a network with a thousand classes, contiguous, as safetensors needs them."""
    torch.manual_seed(99)
    network = mobilenet_v2(Architecture(), classes=1000)
    return {name: value.contiguous() for name, value in network.state_dict().items()}


def body(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name not in HEAD and "num_batches" not in name}


def test_random_weights_are_the_seed_s_and_leave_torch_s_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    (first, digest), (again, _) = (initialise(TINY, "random") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert digest == "random:0"
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_file_of_imagenet_weights_gives_the_body_and_a_new_head(imagenet: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(imagenet, path)
    network, digest = initialise(TINY, str(path))
    state = network.state_dict()
    assert digest == f"sha256:{sha256(path.read_bytes())}"
    assert all(torch.equal(state[name], value) for name, value in body(imagenet).items())
    assert network.classifier[1].out_features == 10
    fresh, _ = initialise(TINY, "random")
    assert torch.equal(state[HEAD[0]], fresh.state_dict()[HEAD[0]])


def test_a_user_s_own_classes_get_a_new_head_even_if_there_are_as_many(
    imagenet: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(imagenet, tmp_path / "weights.safetensors")
    own = Description("many", "many", tuple(map(str, range(1000))))
    network, _ = initialise(replace(TINY, input_size=64), str(tmp_path / "weights.safetensors"), own)
    state = network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in body(imagenet).items())
    assert state[HEAD[0]].shape == imagenet[HEAD[0]].shape and not torch.equal(state[HEAD[0]], imagenet[HEAD[0]])


def test_a_head_of_ten_classes_is_kept(tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in mobilenet_v2(Architecture()).state_dict().items()}
    state[HEAD[1]] = torch.arange(10.0)
    save_file(state, tmp_path / "ours.safetensors")
    network, _ = initialise(TINY, str(tmp_path / "ours.safetensors"))
    assert torch.equal(network.state_dict()[HEAD[1]], torch.arange(10.0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("features.3.conv.1.0.weight"), "has no features.3.conv.1.0.weight"),
        (
            lambda state: state.update({"features.18.1.bias": torch.zeros(7)}),
            r"features.18.1.bias has shape \(7,\), \(1280,\) is needed",
        ),
    ],
)
def test_weights_of_another_network_are_refused(
    imagenet: dict[str, Tensor], tmp_path: Path, change: Any, said: str
) -> None:
    state = dict(imagenet)
    change(state)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(TrainingError, match=said):
        initialise(TINY, str(tmp_path / "other.safetensors"))


def test_a_file_of_another_kind_or_none_is_refused_with_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"PK not safetensors at all")
    with pytest.raises(TrainingError, match="is not a safetensors file"):
        initialise(TINY, str(tmp_path / "weights.pt"))
    with pytest.raises(TrainingError, match="imagenet, random, or a safetensors file"):
        initialise(TINY, str(tmp_path / "none"))


def test_imagenet_is_torchvision_s(imagenet: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(self: MobileNet_V2_Weights, **options: Any) -> dict[str, Tensor]:
        asked.update(options, weights=self)
        return imagenet

    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", download)
    network, digest = initialise(TINY, "imagenet")
    assert asked["weights"] is MobileNet_V2_Weights.IMAGENET1K_V2 and asked["check_hash"] and asked["weights_only"]
    assert digest == "torchvision:MobileNet_V2_Weights.IMAGENET1K_V2"
    assert all(torch.equal(network.state_dict()[name], value) for name, value in body(imagenet).items())


@pytest.mark.parametrize(
    "problem", [URLError("no route to host"), RuntimeError("invalid hash value"), OSError(28, "full")]
)
def test_a_failed_download_is_one_line(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: MobileNet_V2_Weights, **_: Any) -> None:
        raise problem

    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", fail)
    with pytest.raises(TrainingError, match=r"^cannot download https://.*--init is imagenet, random, or") as error:
        initialise(TINY, "imagenet")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "record"),
    [("run.json", {"config": {"split_seed": 3}}), ("bundle.json", {"provenance": {"config": {"split_seed": 3}}})],
)
def test_weights_that_have_seen_what_is_held_out_here_are_refused(
    imagenet: dict[str, Tensor], tmp_path: Path, name: str, record: dict[str, Any]
) -> None:
    save_file(imagenet, tmp_path / "weights.safetensors")
    (tmp_path / name).write_text(json.dumps(record))
    with pytest.raises(TrainingError, match=r"--init .* was trained with --split-seed 3, not 0"):
        initialise(TINY, str(tmp_path / "weights.safetensors"))
    initialise(replace(TINY, split_seed=3), str(tmp_path / "weights.safetensors"))
    (tmp_path / name).write_text("{}")  # says nothing of a split
    initialise(TINY, str(tmp_path / "weights.safetensors"))
