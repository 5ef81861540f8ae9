import io

import matplotlib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from app.imaging.activation_map import COLOURS, OPACITY, SIDE, colours, draw, strength

GREY = np.full((32, 32, 3), 100, np.uint8)
DARK_BLUE, YELLOW = COLOURS[0], COLOURS[-1]


def maps(*values: float) -> np.ndarray:
    """float32 [classes, 4, 4]: zero but for each class's value at its second row, fourth column."""
    result = np.zeros((len(values), 4, 4), np.float32)
    result[:, 1, 3] = values
    return result


def pixels(image: np.ndarray, maps: np.ndarray, class_id: int) -> np.ndarray:
    with Image.open(io.BytesIO(draw(image, maps, class_id))) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (SIDE, SIDE))
        return np.asarray(picture)


def over(grey: float, colour: np.ndarray) -> np.ndarray:
    return grey + OPACITY * (colour - grey)


def test_the_colour_is_where_the_map_is_large() -> None:
    picture = pixels(GREY, maps(2, 1), 0)
    np.testing.assert_allclose(picture[64 + 32, 255], over(100, YELLOW), atol=4)
    np.testing.assert_allclose(picture[255, 0], over(100, DARK_BLUE), atol=1)
    # Halfway from the place to the one on its left, which is zero.
    np.testing.assert_allclose(picture[64 + 32, 192], over(100, colours(np.array(0.5))), atol=3)


def test_classes_of_one_image_are_on_one_scale() -> None:
    half = pixels(GREY, maps(2, 1), 1)
    np.testing.assert_allclose(half[64 + 32, 255], over(100, colours(np.array(0.5))), atol=3)


def test_evidence_against_a_class_is_not_shown() -> None:
    assert (strength(maps(2, -5), 1) == 0).all()
    assert (strength(maps(-2, -5), 0) == 0).all()  # nothing speaks for any class: nothing to divide by
    np.testing.assert_allclose(
        pixels(GREY, maps(-2, -5), 0), np.broadcast_to(over(100, DARK_BLUE), (256, 256, 3)), atol=1
    )


def test_the_background_is_the_network_s_input_in_grey() -> None:
    chance = np.random.default_rng(0)
    image = chance.integers(256, size=(32, 32, 3), dtype=np.uint8)
    picture = pixels(image, maps(0), 0).astype(float)
    blocks = picture.reshape(32, 8, 32, 8, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    luma = image @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(picture[::8, ::8], over(luma[..., None], DARK_BLUE), atol=1.5)


MAPS = arrays(np.float32, (3, 4, 4), elements=st.floats(-100, 100, width=32))


AGAINST = np.full((3, 4, 4), -100, np.float32)  # all but the second row
AGAINST[:, 1] = 1.5


@given(MAPS, st.integers(0, 2))
@example(AGAINST, 0)
def test_strengths_of_any_map_are_between_0_and_1(values: np.ndarray, class_id: int) -> None:
    shares = strength(values, class_id)
    assert shares.shape == (SIDE, SIDE)
    assert shares.min() >= 0
    assert shares.max() <= 1
    if values[class_id].max() == values.max() > 0:
        # The largest value stands at the middle of its place, whatever is around it.
        row, column = np.unravel_index(values[class_id].argmax(), (4, 4))
        assert shares[row * 64 + 31, column * 64 + 31] > 0.95


@settings(max_examples=20)
@given(MAPS, st.floats(0.1, 10))
def test_the_scale_is_relative(values: np.ndarray, factor: float) -> None:
    scaled = (values * np.float32(factor)).astype(np.float32)
    np.testing.assert_allclose(strength(scaled, 0), strength(values, 0), atol=1e-4)


def test_the_colours_are_viridis() -> None:
    theirs = np.array(matplotlib.colormaps["viridis"].colors) * 255
    ours = colours(np.linspace(0, 1, 256))
    np.testing.assert_allclose(COLOURS, theirs[np.linspace(0, 255, 9).round().astype(int)], atol=0.5)
    lightness = ours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()


def test_an_unknown_class_raises_an_index_error() -> None:
    with pytest.raises(IndexError):
        draw(GREY, maps(1, 2), 2)
