import pytest
import torch

from training.fit.balance import class_weights


def test_an_image_of_a_rare_class_counts_for_more_but_not_as_much_as_it_is_rare() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    weights = class_weights(labels)
    assert (weights[1] / weights[0]).item() == pytest.approx(3)
    assert weights[labels].mean().item() == pytest.approx(1)


def test_images_of_equally_many_classes_count_alike() -> None:
    torch.testing.assert_close(class_weights(torch.arange(30) % 3), torch.ones(3))
