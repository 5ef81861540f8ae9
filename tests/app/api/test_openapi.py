"""What the OpenAPI document says. tests/benchmarks/faults/conformance.py checks that the service does it."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.bundle.reader import Bundle
from app.inference.sessions import Session


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def test_every_error_is_a_problem_document(document: dict[str, Any]) -> None:
    for path, operation in operations(document):
        for status, response in operation["responses"].items():
            if status >= "400":
                (kind,) = response["content"]
                assert kind == "application/problem+json", (path, status)
                reference = response["content"][kind]["schema"]["$ref"]
                assert reference.endswith("ProblemDocument"), (path, status)
    assert "ValidationError" not in str(document)


def test_what_names_something_may_be_missing(document: dict[str, Any]) -> None:
    for path, operation in operations(document):
        named = "{" in path
        assert ("404" in operation["responses"]) == (named or path == "/explain"), path
        queried = any(parameter["in"] == "query" for parameter in operation.get("parameters", ()))
        assert "422" in operation["responses"] or not queried, path


def test_parameters_have_the_models_values(document: dict[str, Any], loaded: tuple[Bundle, Session]) -> None:
    manifest = loaded[0].manifest
    found = {
        parameter["name"]: parameter["schema"].get("anyOf", [parameter["schema"]])[0]
        for _, operation in operations(document)
        for parameter in operation.get("parameters", ())
    }
    assert (found["top_k"]["minimum"], found["top_k"]["maximum"]) == (1, 10)
    assert (found["class_id"]["minimum"], found["class_id"]["maximum"]) == (0, 9)
    levels = [level.coverage for level in manifest.calibration.conformal.levels]
    assert found["coverage"]["examples"] == levels
    assert (found["coverage"]["minimum"], found["coverage"]["maximum"]) == (min(levels), max(levels))
    assert found["model"]["enum"] == ["cifar10", "cifar10_image"]
    assert found["version"]["enum"] == ["1"]
    assert "confusion_matrix" in found["picture"]["enum"]


def inner(document: Any) -> Iterator[dict[str, Any]]:
    """All objects in it."""
    if isinstance(document, dict):
        yield document
    for value in document.values() if isinstance(document, dict) else document if isinstance(document, list) else ():
        yield from inner(value)


def test_generators_of_clients_find_names_for_functions_answers_and_values(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert {"predict", "predict_batch", "explain", "report", "model", "v2_infer", "v2_infer_of_version"} < set(ids)
    assert len(set(ids)) == len(ids)
    assert max(map(len, ids)) <= 30
    for path, operation in operations(document):
        for media_type, content in operation["responses"]["200"]["content"].items():
            schema = content["schema"]
            schema = schema["items"] if schema.get("type") == "array" else schema
            assert ("$ref" in schema) == (media_type == "application/json"), (path, media_type)
    for schema in inner(document):
        assert schema.get("type") != "array" or "items" in schema or "prefixItems" in schema, schema
        assert not any(isinstance(value, float) for value in schema.get("enum", ())), schema
