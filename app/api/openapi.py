"""The OpenAPI document: FastAPI's, corrected where FastAPI cannot know better.

- Errors are problem documents, of their own media type; what a route says of its own errors is kept.
- FastAPI adds a 422 of its own form to every route with a parameter. Errors here have another form, and no text in a
  path is invalid: a name that does not exist is 404.
- The model determines the values that parameters may have, so only a running service's document has them. Coverages are
  no `enum`: generators of clients make names of its values, and have none for fractions.
- Operations have short ids, after which generated clients name their functions.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from ..bundle.manifest import DataSet, Manifest
from ..bundle.names import PICTURES
from ..inference.classifier import DEFAULT_TOP_K
from .open_inference.models import VERSION, ServedModel
from .service import Service

PROBLEM = {"$ref": "#/components/schemas/ProblemDocument"}
OF_FASTAPI = ("HTTPValidationError", "ValidationError")


def operation_id(route: APIRoute) -> str:
    """The name of the route's function."""
    return route.name


class Application(FastAPI):
    """FastAPI, with `service` in its state while it runs."""

    _described: Mapping[str, ServedModel] | None = None  # what the document was made of

    def _describe(self, manifest: Manifest) -> None:
        """Name what the service classifies now."""
        of = manifest.data_set
        classes = "the ten CIFAR-10" if of == DataSet() else str(len(manifest.classes))
        self.title = f"{of.title} classifier"
        self.summary = f"Classifies images into {classes} classes, and says how far to trust each answer."

    def openapi(self) -> dict[str, Any]:
        service: Service | None = getattr(self.state, "service", None)
        models = service.models if service else None
        if not self.openapi_schema or models is not self._described:
            self.openapi_schema, self._described = None, models
            if service:
                self._describe(service.bundle.manifest)
            document = super().openapi()
            values = _values(service) if service else {}
            for operation in (operation for path in document["paths"].values() for operation in path.values()):
                _correct(operation)
                for parameter in operation.get("parameters", ()):
                    _narrow(parameter["schema"], values.get((parameter["in"], parameter["name"]), {}))
            for name in OF_FASTAPI:
                document["components"]["schemas"].pop(name, None)
        return self.openapi_schema or {}


def _correct(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    if OF_FASTAPI[0] in str(responses.get("422")):
        del responses["422"]
        if any(parameter["in"] == "query" for parameter in operation["parameters"]):
            responses["422"] = {"description": "A parameter is out of range."}
    for status, response in responses.items():
        if status >= "400":
            found = response.get("content", {})
            schema = next((kind["schema"] for kind in found.values() if kind.get("schema")), PROBLEM)
            response["content"] = {"application/problem+json": {"schema": schema}}


def _values(service: Service) -> dict[tuple[str, str], dict[str, Any]]:
    """Constraints to add to the parameters' schemas, by the parameters' places and names: what some model accepts."""
    models = list(service.repository.models.values())
    classes = max(len(model.bundle.manifest.classes) for model in models)
    levels = list(dict.fromkeys(level for model in models for level in model.classifier.levels))
    pictures = [picture for picture in PICTURES if any(picture in model.bundle for model in models)]
    return {
        ("query", "top_k"): {"maximum": classes, "default": min(DEFAULT_TOP_K, classes)},
        ("query", "class_id"): {"maximum": classes - 1},
        ("query", "coverage"): _one_of(levels) if levels else {"not": {}},
        ("query", "model"): {"enum": list(service.repository.models)},
        ("path", "model"): {"enum": list(service.models)},
        ("path", "version"): {"enum": [VERSION]},
        ("path", "picture"): {"enum": [picture.removesuffix(".png") for picture in pictures]},
    }


def _one_of(levels: list[float]) -> dict[str, Any]:
    names = ", ".join(map(str, levels))
    return {"minimum": min(levels), "maximum": max(levels), "examples": levels, "description": f"One of {names}."}


def _narrow(schema: dict[str, Any], more: dict[str, Any]) -> None:
    """Add constraints to a schema, or to its alternative that is not null."""
    kinds = schema.get("anyOf", [schema])
    kinds[0].update(more)
