import numpy as np
import pytest
import torch

from app.bundle.manifest import Architecture
from app.network.mobilenet import Preprocessed, mobilenet_v2
from app.network.novelty import Novelty
from app.network.served import ServedNetwork

IMAGES = torch.randint(256, (3, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def model() -> Preprocessed:
    torch.manual_seed(0)
    return Preprocessed(mobilenet_v2(Architecture(stage2_stride=2)), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).eval()


def test_logits_are_those_of_the_trained_network(model: Preprocessed) -> None:
    with torch.inference_mode():
        assert torch.equal(ServedNetwork(model)(IMAGES).logits, model(IMAGES))


def test_the_means_of_the_class_maps_are_the_logits(model: Preprocessed) -> None:
    with torch.inference_mode():
        outputs = ServedNetwork(model)(IMAGES, maps=True)
    assert outputs.class_maps.shape == (3, 10, 2, 2)
    np.testing.assert_allclose(outputs.class_maps.mean((2, 3)), outputs.logits, atol=1e-5)


def test_the_out_of_distribution_score_is_computed_from_the_features(model: Preprocessed) -> None:
    random = torch.Generator().manual_seed(0)
    tensors = [torch.rand(shape, generator=random) for shape in ((20, 1280), (1280,), (1280, 40), (2,), (2,))]
    novelty = Novelty(*tensors)
    with torch.inference_mode():
        outputs = ServedNetwork(model, novelty)(IMAGES)
        assert outputs.features.shape == (3, 1280)
        assert torch.equal(outputs.ood_scores, novelty.score(outputs.features))


def test_optional_outputs_are_computed_only_on_request(model: Preprocessed) -> None:
    with torch.inference_mode():
        outputs = ServedNetwork(model)(IMAGES)
    assert outputs.ood_scores is None and outputs.class_maps is None
