import numpy as np
import pytest
import torch

from training.evaluate.drift_reference import BINS, drift_reference
from training.evaluate.network_outputs import Predictions


def test_classes_and_confidences_are_counted_in_about_equal_parts() -> None:
    random = torch.Generator().manual_seed(0)
    scored = Predictions(torch.randn(1000, 10, generator=random) * 2, torch.randint(10, (1000,), generator=random))
    found = drift_reference(scored, 1.3)
    assert found.predicted == np.bincount(scored.logits.argmax(1), minlength=10).tolist()
    assert sum(found.confidence) == 1000 and len(found.confidence) == BINS
    assert min(found.confidence) >= 95 and max(found.confidence) <= 105
    assert found.confidence_edges[0] == 0 and found.confidence_edges[-1] == 1
    confidence = (scored.logits.double() / 1.3).softmax(1).amax(1).numpy()
    assert found.confidence == np.histogram(confidence, found.confidence_edges)[0].tolist()


@pytest.mark.parametrize("scale", [0.0, 1000.0])
def test_confidences_that_are_all_equal_share_a_bin(scale: float) -> None:
    found = drift_reference(Predictions(torch.eye(10) * scale, torch.arange(10)), 1.0)
    assert sum(found.confidence) == 10 and sum(found.predicted) == 10
    assert sorted(found.confidence)[-1] == 10
