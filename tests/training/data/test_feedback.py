"""What the service keeps for training is what training reads."""

from pathlib import Path

import numpy as np

from app.feedback.pictures import Pictures
from training.data.cifar10 import CLASSES
from training.data.photographs import SIDE, read_photographs


def test_training_reads_the_copies_that_feedback_has_labelled(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path, days=1, max_bytes=10**6)
    noise = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    names = [pictures.keep(image) for image in noise]
    for name, label in zip(names[:2], ("frog", "cat"), strict=True):
        assert name
        pictures.label(name, label)
    pictures.close()
    found = read_photographs(tmp_path / "labelled")
    assert found.names == [f"cat/{names[1]}", f"frog/{names[0]}"]
    assert [CLASSES[label] for label in found.labels] == ["cat", "frog"]
    assert (found.images.numpy() == noise[[1, 0]]).all()
