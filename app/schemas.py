"""What goes over the wire."""

from pydantic import BaseModel, ConfigDict, Field


class ModelName(BaseModel):
    name: str = Field(examples=["mobilenet_v2_cifar10"])
    version: str = Field(examples=["1.0.0+0a1b2c3d"])


class Prediction(BaseModel):
    label: str = Field(examples=["cat"])
    class_id: int = Field(ge=0, examples=[3])
    probability: float = Field(ge=0, le=1, examples=[0.9312])


class Timing(BaseModel):
    """Milliseconds; total also holds reading the request."""

    decode: float = Field(examples=[0.4])
    queue: float = Field(examples=[0.1])
    inference: float = Field(examples=[4.5])
    total: float = Field(examples=[5.6])


class PredictResponse(BaseModel):
    """The top_k most probable classes, most probable first."""

    model_config = ConfigDict(protected_namespaces=())

    model: ModelName
    predictions: list[Prediction]
    views: int = Field(description="Over how many views of the image the logits were averaged.", examples=[1])
    timing_ms: Timing


class Health(BaseModel):
    status: str = Field(examples=["ready"])
