import pytest

from app.errors import Overloaded
from app.inference.places import Places


def test_places_are_counted_in_images() -> None:
    places = Places(4)
    with places.reserve(3):
        assert places.reserved == 3
        with pytest.raises(Overloaded) as refused, places.reserve(2):
            pass
        assert refused.value.headers["Retry-After"] == "1"
        with places.reserve(1):
            assert places.reserved == 4
    assert places.reserved == 0
