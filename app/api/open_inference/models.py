"""The classifier under the two names by which Open Inference Protocol clients know it.

    cifar10         pixels: the input `images`, UINT8 [-1, 32, 32, 3], RGB
    cifar10_image   files: the input `image`, BYTES [-1], each element an encoded image (see app.imaging.decode)

Both answer `probabilities`, FP32 [-1, 10], calibrated. Either takes at most `max_batch_size` images a request.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...bundle.reader import Manifest
from ...settings import Settings

VERSION = "1"  # the protocol wants a number; the bundle's own version is in GET /model

# As in /predict/batch. Past the engine's batch limit more images save nothing but headers, and one request
# should not hold much of the queue.
MAX_IMAGES = 32

# platform and backend in Triton's words, by ENGINE
RUNTIMES = {"onnx": ("onnxruntime_onnx", "onnxruntime"), "torch": ("pytorch_safetensors", "pytorch")}


@dataclass(frozen=True)
class Tensor:
    """`shape` is that of a whole request: its first dimension is the images, -1."""

    name: str
    datatype: Literal["UINT8", "BYTES", "FP32"]
    shape: tuple[int, ...]

    def metadata(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def config(self) -> dict[str, Any]:
        """As Triton configures a tensor: in its own words, and without the dimension of the images."""
        kind = "STRING" if self.datatype == "BYTES" else self.datatype
        return {"name": self.name, "data_type": f"TYPE_{kind}", "dims": list(self.shape[1:])}


@dataclass
class Durations:
    """How often something was done, and how long that took altogether."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def document(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


STAGES = ("compute_input", "compute_infer", "compute_output")


class Statistics:
    """What became of one model's requests since the service started, in the terms of Triton's statistics extension.

    An execution is a request: how the engine cuts it, and what it computes together with others, is in /metrics.
    A request's `queue`, `compute_input` (parsing, decoding) and `compute_infer` are the means over its images, so
    that they and `compute_output` never exceed the time that it took as a whole.
    """

    def __init__(self) -> None:
        self._images = 0
        self._last_milliseconds = 0
        self._spent: defaultdict[str, Durations] = defaultdict(Durations)
        self._by_size: defaultdict[int, defaultdict[str, Durations]] = defaultdict(lambda: defaultdict(Durations))

    def succeed(self, images: int, seconds: Mapping[str, float], now: float) -> None:
        """Count an answer for `images` images. `seconds` has "success", "queue" and STAGES; `now` is time.time()."""
        self._images += images
        self._last_milliseconds = round(now * 1000)
        for name, spent in seconds.items():
            self._spent[name].add(spent)
        for stage in STAGES:
            self._by_size[images][stage].add(seconds[stage])

    def fail(self, seconds: float) -> None:
        self._spent["fail"].add(seconds)

    def document(self) -> dict[str, Any]:
        names = ("success", "fail", "queue", *STAGES, "cache_hit", "cache_miss")
        return {
            "last_inference": self._last_milliseconds,
            "inference_count": self._images,
            "execution_count": self._spent["success"].count,
            "inference_stats": {name: self._spent[name].document() for name in names},
            "batch_stats": [
                {"batch_size": images, **{stage: spent[stage].document() for stage in STAGES}}
                for images, spent in sorted(self._by_size.items())
            ],
        }


@dataclass(frozen=True)
class ServedModel:
    name: str
    input: Tensor
    output: Tensor
    labels: list[str]
    views: int  # places in the engine's queue that an image may take
    max_batch_size: int
    platform: str
    backend: str
    statistics: Statistics = field(default_factory=Statistics)

    def metadata(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": self.platform,
            "inputs": [self.input.metadata()],
            "outputs": [self.output.metadata()],
        }

    def config(self) -> dict[str, Any]:
        """Triton's model configuration, as far as it means anything here."""
        layout = "FORMAT_NHWC" if self.input.datatype == "UINT8" else "FORMAT_NONE"
        return {
            "name": self.name,
            "platform": self.platform,
            "backend": self.backend,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self.max_batch_size,
            "input": [{**self.input.config(), "format": layout}],
            "output": [{**self.output.config(), "label_filename": ""}],
        }

    def statistics_document(self) -> dict[str, Any]:
        return {"name": self.name, "version": VERSION, **self.statistics.document()}


def served_models(settings: Settings, manifest: Manifest) -> dict[str, ServedModel]:
    """The models by name, their statistics at zero."""
    platform, backend = RUNTIMES[settings.engine]
    pixels = Tensor("images", "UINT8", (-1, manifest.input.height, manifest.input.width, 3))
    files = Tensor("image", "BYTES", (-1,))
    return {
        name: ServedModel(
            name=name,
            input=tensor,
            output=Tensor("probabilities", "FP32", (-1, len(manifest.classes))),
            labels=manifest.classes,
            views=views,
            max_batch_size=min(MAX_IMAGES, settings.queue_images // views),
            platform=platform,
            backend=backend,
        )
        for name, tensor, views in (("cifar10", pixels, 1), ("cifar10_image", files, settings.views))
    }
