"""The JSON documents that /v2 answers with, as the protocol and Triton's extensions define them.

ServedModel and `render` make them; these models describe them in OpenAPI.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Document(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class ServerMetadata(_Document):
    name: str = Field(examples=["cifar10-classifier"])
    version: str
    extensions: list[str]


class ServerLive(_Document):
    live: bool


class ServerReady(_Document):
    ready: bool
    live: bool


class ModelNames(_Document):
    models: list[str] = Field(examples=[["cifar10", "cifar10_image"]])


class RepositoryEntry(_Document):
    name: str
    version: str
    state: str = Field(examples=["READY"])
    reason: str


class LoadedBundle(_Document):
    """What answers under the model's name now."""

    name: str = Field(examples=["cifar10"])
    bundle: str = Field(examples=["mobilenet_v2_cifar10"])
    version: str = Field(examples=["1.0.0+0a1b2c3d"])
    digest: str = Field(description="Of the bundle's manifest.")


class TensorMetadata(_Document):
    name: str
    datatype: str = Field(examples=["UINT8"])
    shape: list[int] = Field(description="-1: the number of images.", examples=[[-1, 32, 32, 3]])


class ModelMetadata(_Document):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(_Document):
    name: str
    ready: bool


class NumberOfVersions(_Document):
    num_versions: int


class VersionPolicy(_Document):
    latest: NumberOfVersions


class ConfiguredInput(_Document):
    name: str
    data_type: str = Field(examples=["TYPE_UINT8"])
    dims: list[int] = Field(description="Without the number of images.")
    format: str


class ConfiguredOutput(_Document):
    name: str
    data_type: str = Field(examples=["TYPE_FP32"])
    dims: list[int] = Field(description="Without the number of images.")
    label_filename: str


class ModelConfiguration(_Document):
    """Triton's, as far as it applies here."""

    name: str
    platform: str
    backend: str
    version_policy: VersionPolicy
    max_batch_size: int
    input: list[ConfiguredInput]
    output: list[ConfiguredOutput]


class Duration(_Document):
    """How often something was done, and how long it took in total."""

    count: int
    ns: int = Field(description="Nanoseconds.")


class RequestDurations(_Document):
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchDurations(_Document):
    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(_Document):
    name: str
    version: str
    last_inference: int = Field(description="Unix milliseconds.")
    inference_count: int
    execution_count: int
    inference_stats: RequestDurations
    batch_stats: list[BatchDurations]


class StatisticsOfModels(_Document):
    model_stats: list[ModelStatistics]


class OutputParameters(_Document):
    binary_data_size: int


class OutputTensor(_Document):
    """Its elements are in `data`, or in the `binary_data_size` bytes that follow the JSON."""

    name: str
    datatype: str = Field(examples=["FP32"])
    shape: list[int]
    data: list[Any] = Field([], description="Missing if the elements are binary.")
    parameters: OutputParameters = Field(
        OutputParameters(binary_data_size=0), description="Missing unless the elements are binary."
    )


class Trust(_Document):
    """How far to trust the images' probabilities: each member is a JSON list as a text, an element for each image.

    What the bundle does not provide is missing.
    """

    prediction_set: str = Field("", examples=['[{"coverage":0.99,"labels":["cat","dog"]}]'])
    abstain: str = Field("", examples=["[false]"])
    ood_score: str = Field("", examples=["[0.71]"])


class InferenceResponse(_Document):
    model_name: str
    model_version: str
    id: str
    parameters: Trust = Field(Trust(), description="Missing if the bundle provides none of them.")
    outputs: list[OutputTensor]
