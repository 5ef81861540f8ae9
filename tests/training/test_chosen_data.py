"""The defaults for few images of a user's own."""

import pytest

from training.chosen_data import own_config
from training.config import Config

DEFAULT = Config()


def chosen(images: int, given: set[str] | None = None, config: Config = DEFAULT) -> tuple[int, int]:
    found = own_config(config, given or set(), images, others=False)
    return found.batch_size, found.ema_every


@pytest.mark.parametrize(
    ("images", "batch", "every"), [(12, 8, 1), (36, 9, 4), (100, 25, 4), (256, 64, 4), (40_000, 64, 4)]
)
def test_a_batch_is_a_quarter_of_few_images_and_64_of_many(images: int, batch: int, every: int) -> None:
    assert chosen(images) == (batch, every)


def test_what_was_given_stays() -> None:
    assert chosen(36, {"batch_size"}) == (64, 1)
    assert chosen(12, {"ema_every"}) == (8, 4)
    assert chosen(36, {"batch_size", "ema_every"}) == (64, 4)


@pytest.mark.parametrize("images", range(12, 300, 7))
@pytest.mark.parametrize("epochs", [1, 3, 10])
def test_the_defaults_are_always_possible(images: int, epochs: int) -> None:
    batch, every = chosen(images, config=Config(epochs=epochs))
    assert 2 <= batch <= images and 1 <= every <= epochs * (images // batch)


def test_other_things_are_a_quarter_of_a_batch_unless_their_number_was_given() -> None:
    assert own_config(DEFAULT, set(), 36, others=True).photograph_batch == 2
    assert own_config(Config(photograph_batch=5), set(), 36, others=True).photograph_batch == 5
    assert own_config(DEFAULT, set(), 36, others=False).photograph_batch == 0
