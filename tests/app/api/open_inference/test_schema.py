from typing import Any

import pytest
from pydantic import BaseModel

from app.api.open_inference.schema import INPUT, MAX_ID_CHARACTERS, MESSAGE, InferenceMessage, InputTensor


@pytest.mark.parametrize(("published", "model"), [(MESSAGE, InferenceMessage), (INPUT, InputTensor)])
def test_the_published_schema_has_exactly_the_members_that_are_read(
    published: dict[str, Any], model: type[BaseModel]
) -> None:
    own = model.model_json_schema()
    assert published["properties"].keys() == own["properties"].keys()
    assert published["required"] == own["required"]
    for name, schema in published["properties"].items():
        read = own["properties"][name].get("anyOf", [own["properties"][name]])[0]
        assert read.get("type", "object") == schema["type"], name  # a $ref is an object


def test_the_length_limit_of_an_id_is_the_published_one() -> None:
    for characters in (0, MAX_ID_CHARACTERS):
        InferenceMessage.model_validate({"inputs": [], "id": "\0" * characters})
    with pytest.raises(ValueError, match=f"at most {MAX_ID_CHARACTERS} characters"):
        InferenceMessage.model_validate({"inputs": [], "id": "\0" * (MAX_ID_CHARACTERS + 1)})
