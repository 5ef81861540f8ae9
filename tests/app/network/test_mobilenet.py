import pytest
import torch
from torchvision.models import mobilenet_v2 as torchvision_mobilenet_v2

from app.bundle.manifest import Architecture
from app.network.mobilenet import Preprocessed, count_macs, count_parameters, mobilenet_v2


@pytest.mark.parametrize(("stem", "stage2", "macs"), [(1, 1, 87_976_448), (1, 2, 24_461_312), (2, 2, 6_124_928)])
def test_strides_decide_the_cost_and_not_the_weights(stem: int, stage2: int, macs: int) -> None:
    network = mobilenet_v2(Architecture.model_validate({"stem_stride": stem, "stage2_stride": stage2}))
    assert count_macs(network) == macs
    assert count_parameters(network) == 2_236_682


def test_enlarging_costs_what_the_enlarged_image_costs() -> None:
    enlarging = mobilenet_v2(Architecture(stem_stride=2, stage2_stride=2, enlarge=4)).eval()
    plain = mobilenet_v2(Architecture(stem_stride=2, stage2_stride=2)).eval()
    assert count_macs(enlarging) == count_macs(plain, 128, 128) == 97_806_848
    assert count_parameters(enlarging) == 2_236_682
    plain.load_state_dict(enlarging.state_dict())  # the same names
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    larger = torch.nn.functional.interpolate(images, size=(128, 128), mode="bilinear")
    with torch.inference_mode():
        assert torch.equal(enlarging(images), plain(larger))


def test_counting_leaves_the_network_as_it_was() -> None:
    network = mobilenet_v2(Architecture(stem_stride=2, stage2_stride=2)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_macs(network)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_with_the_original_strides_it_is_torchvision_s_network() -> None:
    ours = mobilenet_v2(Architecture(stem_stride=2, stage2_stride=2), classes=1000).eval()
    theirs = torchvision_mobilenet_v2(weights=None).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images))


def test_preprocessing_is_scaling_then_normalisation() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.randint(256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen = Preprocessed(torch.nn.Identity(), mean, std)(images)
    expected = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(
        3, 1, 1
    )
    torch.testing.assert_close(seen, expected)
    assert seen.is_contiguous(memory_format=torch.channels_last)


def test_a_step_of_training_copies_no_activation() -> None:
    """Activations in place make autograd copy each of the 35 outputs that the gradient needs."""
    network = mobilenet_v2(Architecture(stem_stride=2, stage2_stride=2)).train()
    assert not any(getattr(layer, "inplace", False) for layer in network.modules())
