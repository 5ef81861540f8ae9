"""What goes over the wire."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..bundle.manifest import Abstention, Architecture, Calibration, Input, Reference
from ..inference.answers import Fault, ImageResult


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
    """Milliseconds; total also holds reading the request."""

    decode: float = Field(examples=[0.4])
    queue: float = Field(examples=[0.1])
    inference: float = Field(examples=[4.5])
    total: float = Field(examples=[5.6])


class _OfModel(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model: ModelName


class PredictResponse(ImageResult, _OfModel):
    """The top_k most probable classes, most probable first, and how far to trust them.

    Null is what a model's bundle has no measure of.
    """

    timing_ms: Timing


class ImageFailure(BaseModel):
    """Why there is no result for one image of a batch."""

    error: ProblemDocument


class BatchResponse(_OfModel):
    """One result an image, in the order of the images."""

    results: list[ImageResult | ImageFailure] = Field(description="Failures only with `partial=true`.")
    timing_ms: Timing = Field(description="Each stage of the image that spent most time in it; total of the request.")


class BatchFault(Fault):
    """An image for which a batch was refused."""

    index: int = Field(ge=0, description="Its place in the request, from 0.")
    filename: str | None = Field(None, description="As sent; missing where none was.", examples=["cat.png"])


class BatchProblemDocument(ProblemDocument):
    errors: list[BatchFault] = Field([], description="With the code `invalid_batch`: every image that cannot be used.")


class Model(BaseModel):
    """The bundle's manifest, without its self-check."""

    schema_version: int
    name: str
    version: str
    classes: list[str] = Field(description="In index order.")
    architecture: Architecture
    input: Input
    macs: int = Field(description="Multiply-adds for one image.")
    parameters: int
    calibration: Calibration | None
    abstention: Abstention | None
    reference: Reference | None
    files: dict[str, str] = Field(description="sha256 by name.")
    provenance: dict[str, Any]
    digest: str


class Health(BaseModel):
    status: str = Field(examples=["ready"])
