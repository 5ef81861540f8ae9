import json
from dataclasses import FrozenInstanceError, replace

import pytest

from app.bundle.manifest import Architecture
from training.config import FIELDS, Config
from training.errors import TrainingError


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("stem_stride", 3, "from 1 to 2"),
        ("stage2_stride", 0, "from 1 to 2"),
        ("enlarge", 5, "from 1 to 4"),
        ("epochs", 0, "from 1 to 1000"),
        ("batch_size", 1, "from 2 to 4096"),
        ("lr", float("nan"), "from 0 to 10"),
        ("warmup", 1.1, "from 0 to 1"),
        ("beta2", 1.0, "from 0 to 0.99999"),
        ("label_smoothing", -0.1, "from 0 to 0.9"),
        ("shift", 32, "from 0 to 31"),  # an image can be reflected by less than its own size
        ("seed", -1, "from 0 to 2147483647"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(field: str, value: float, allowed: str) -> None:
    with pytest.raises(TrainingError, match=f"^{field} is {value}: it must be {allowed}$"):
        replace(Config(), **{field: value})


def test_a_config_is_frozen_and_survives_json() -> None:
    config = Config(stage2_stride=1, lr=3e-4, flip=False)
    assert Config.recorded(json.loads(json.dumps(config.as_dict()))) == config
    with pytest.raises(FrozenInstanceError):
        config.lr = 1.0  # type: ignore[misc]


def test_every_number_has_bounds() -> None:
    for name, field in FIELDS.items():
        if field.annotation is not bool:
            with pytest.raises(TrainingError, match=f"^{name} is -1: it must be "):
                replace(Config(), **{name: -1})


def test_the_architecture_follows_strides_and_enlargement() -> None:
    found = Config(stem_stride=2, stage2_stride=1, enlarge=3).architecture
    assert found == Architecture(stem_stride=2, stage2_stride=1, enlarge=3)


def test_a_record_may_be_older_than_a_field() -> None:
    old = Config().as_dict()
    del old["enlarge"], old["zoom"], old["precision"]
    found = Config.recorded(old)
    assert (found.enlarge, found.zoom, found.precision) == (1, 1.0, "float32")
    del old["views"], old["teacher_weight"]
    assert Config(enlarge=1, zoom=1.0).differences(old) == []
    with pytest.raises(TrainingError, match="momentum is not a field of the configuration"):
        Config.recorded(old | {"momentum": 0.9})


def test_differences_name_every_field_that_differs() -> None:
    mine = Config(lr=0.001, zoom=1.2, colour=0.0)
    assert mine.differences(mine.as_dict()) == []
    other = mine.as_dict() | {"lr": 0.01, "momentum": 0.9}
    del other["zoom"], other["colour"]  # as a run from before they were there
    assert mine.differences(other) == [
        "lr is 0.001 here and 0.01 there",
        "zoom is 1.2 here and 1.0 there",
        "momentum is absent here and 0.9 there",
    ]


@pytest.mark.parametrize(
    ("size", "asked", "used"), [(32, 4, 4), (32, 2, 2), (48, 4, 2), (64, 4, 2), (65, 4, 1), (224, 4, 1)]
)
def test_a_network_enlarges_no_input_beyond_128_pixels(size: int, asked: int, used: int) -> None:
    assert Config(input_size=size, enlarge=asked).architecture.enlarge == used
