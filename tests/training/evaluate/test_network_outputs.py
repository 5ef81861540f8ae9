import pytest
import torch

from app.network.mobilenet import Preprocessed, mobilenet_v2
from tests.training.tiny import TINY, make_images
from training.evaluate.network_outputs import Predictions, predict_features, predict_logits


@pytest.mark.parametrize("training", [True, False])
def test_batches_do_not_change_the_logits_nor_the_model(training: bool) -> None:
    torch.manual_seed(0)
    model = Preprocessed(mobilenet_v2(TINY.architecture), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = make_images(7, seed=0).images
    logits = predict_logits(model, images, batch_size=3)
    torch.testing.assert_close(logits, predict_logits(model, images))
    assert logits.shape == (7, 10) and not logits.is_inference()
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scores_follow_from_logits() -> None:
    scored = Predictions(torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]]), torch.tensor([0, 1, 1]))
    assert scored.predicted().tolist() == [0, 1, 0]
    assert scored.correct().tolist() == [True, True, False]
    assert scored.accuracy() == pytest.approx(2 / 3)
    assert scored.probabilities()[0, 0] == pytest.approx(1 / (1 + 2.718281828**-1))


def test_features_are_what_the_last_layer_sees() -> None:
    torch.manual_seed(0)
    model = Preprocessed(mobilenet_v2(TINY.architecture), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    images = make_images(7, seed=0).images
    features, logits = predict_features(model, images, batch_size=3)
    assert features.shape == (7, 1280)
    assert torch.equal(torch.from_numpy(logits), predict_logits(model, images, batch_size=3))
    head = model.network.get_submodule("classifier.1")
    with torch.inference_mode():
        torch.testing.assert_close(head(torch.from_numpy(features)), torch.from_numpy(logits))
