import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.validation_errors import one_line


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    port: int = Field(ge=0)


class Outer(BaseModel):
    inner: list[Inner]
    name: str = "x"


def errors(value: object, **options: bool) -> list:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(value)
    return caught.value.errors(**options)


def test_each_error_names_its_place_and_reason() -> None:
    assert one_line(errors({"inner": [{"port": 1}, {"port": -1}], "name": 7})) == (
        "inner.1.port: Input should be greater than or equal to 0; name: Input should be a valid string"
    )


def test_an_error_without_a_place_names_the_whole() -> None:
    assert one_line(errors([], include_input=False), "the message").startswith("the message: Input should be")
    assert one_line(errors([], include_input=False)).startswith("Input should be")


def test_a_text_is_shown_unless_it_is_left_out() -> None:
    given = {"inner": [{"port": "secret"}]}
    assert one_line(errors(given)).endswith("(given: 'secret')")
    assert "secret" not in one_line(errors(given, include_input=False))


def test_names_and_texts_from_outside_are_cut() -> None:
    assert len(one_line(errors({"inner": [{"port": "9x" * 5000}]}))) < 200
    assert len(one_line(errors({"inner": [{"port": 1, "y" * 5000: 1}]}))) < 200


def test_places_are_spelt_as_asked() -> None:
    assert one_line(errors({"inner": [{"port": -1}]}), spell=str.upper).startswith("INNER.0.PORT: ")
