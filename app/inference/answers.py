"""What is said of one image."""

from pydantic import BaseModel, Field


class Prediction(BaseModel):
    label: str = Field(examples=["cat"])
    class_id: int = Field(ge=0, examples=[3])
    probability: float = Field(ge=0, le=1, examples=[0.9312])


class PredictionSet(BaseModel):
    """Classes among which the true one is with the probability `coverage`, for images like the training images."""

    coverage: float = Field(ge=0, le=1, examples=[0.99])
    labels: list[str] = Field(min_length=1, description="Most probable first.", examples=[["cat", "dog"]])


class ImageResult(BaseModel):
    """The top_k most probable classes, most probable first, and how far to trust them.

    Null is what a model's bundle has no measure of.
    """

    predictions: list[Prediction]
    prediction_set: PredictionSet | None = None
    abstain: bool | None = Field(
        None,
        description="The image is unlike the training images (`ood_score` is above `ood_threshold`): "
        "take no answer for one.",
        examples=[False],
    )
    ood_score: float | None = Field(
        None, description="Larger for images less like the training images.", examples=[0.71]
    )
    ood_threshold: float | None = Field(None, description="The model's.", examples=[2.96])
    views: int = Field(description="Over how many views of the image the logits were averaged.", examples=[1])
