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
    assert found["coverage"]["enum"] == [level.coverage for level in manifest.calibration.conformal.levels]
    assert found["model"]["enum"] == ["cifar10", "cifar10_image"]
    assert found["version"]["enum"] == ["1"]
    assert "confusion_matrix" in found["picture"]["enum"]
