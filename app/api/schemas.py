"""The JSON documents that the service answers with, and the OpenAPI schemas of what is no JSON."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..bundle.manifest import ModelDescription
from ..bundle.report import Rows
from ..inference.answers import Fault, ImageResult

BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
TEXT: dict[str, Any] = {"type": "string"}


class ProblemDocument(BaseModel):
    """RFC 9457; `type` is a page that explains the code."""

    type: str = Field(examples=["/problems/undecodable_image"])
    title: str = Field(examples=["The image cannot be decoded"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["the JPEG is cut short or corrupt"])
    code: str = Field(examples=["undecodable_image"])
    instance: str = Field(description="The request's id, as in X-Request-ID and in the log.")
    error: str = Field(description="The same as `detail`.")


class ModelName(BaseModel):
    name: str = Field(examples=["mobilenet_v2_cifar10"])
    version: str = Field(examples=["1.0.0+0a1b2c3d"])


class Timing(BaseModel):
    """Milliseconds; `total` includes reading the request."""

    decode: float = Field(examples=[0.4])
    queue: float = Field(examples=[0.1])
    inference: float = Field(examples=[4.5])
    total: float = Field(examples=[5.6])


class _OfModel(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model: ModelName


class PredictResponse(ImageResult, _OfModel):
    """The top_k most probable classes, most probable first, and how far to trust them.

    A field is null if the bundle does not provide it.
    """

    timing_ms: Timing


class ImageFailure(BaseModel):
    """Why there is no result for one image of a batch."""

    error: ProblemDocument


class BatchResponse(_OfModel):
    """One result an image, in the order of the images."""

    results: Rows[ImageResult | ImageFailure] = Field(description="Failures only with `partial=true`.")
    timing_ms: Timing = Field(description="For each stage, the time of the slowest image; `total` is the request's.")


class BatchFault(Fault):
    """An image for which a batch was refused."""

    index: int = Field(ge=0, description="The image's position in the request, from 0.")
    filename: str | None = Field(
        None, description="As sent, its first 255 characters; missing if none was sent.", examples=["cat.png"]
    )


class BatchProblemDocument(ProblemDocument):
    errors: list[BatchFault] = Field([], description="With the code `invalid_batch`: every image that cannot be used.")


class Model(ModelDescription):
    """The bundle's manifest, without its self-check."""

    # A client accepts what a later service adds. The service sends every field, those with a default too.
    model_config = ConfigDict(extra="ignore", json_schema_serialization_defaults_required=True)


class Health(BaseModel):
    status: str = Field(examples=["ready"])
