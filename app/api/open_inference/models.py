"""Each model under the two names by which Open Inference Protocol clients know it, here those of the default model.

    cifar10         pixels: the input `images`, UINT8 [-1, 32, 32, 3], RGB
    cifar10_image   files: the input `image`, BYTES [-1], each element an encoded image (see app.imaging.decode)

Another bundle than CIFAR-10's gives them the name of what it was trained on, and `images` its size of input.

Both answer `probabilities`, FP32 [-1, classes], calibrated. Either takes at most `max_batch_size` images a request.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...bundle.manifest import Manifest
from ...settings import DEFAULT_MODEL, FILES_SUFFIX, Settings
from ..uploads import most_images
from .statistics import Statistics, total
from .tensors import Signature, Tensor

VERSION = "1"  # the protocol requires a number; GET /model has the bundle's version

# Triton's names of platform and backend, by ENGINE
RUNTIMES = {"onnx": ("onnxruntime_onnx", "onnxruntime"), "torch": ("pytorch_safetensors", "pytorch")}


@dataclass(frozen=True)
class ServedModel(Signature):
    name: str
    of: str  # the model's name in the repository
    labels: list[str]
    views: int  # places in the engine's queue that an image may take
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
        """Triton's model configuration, as far as it applies here."""
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

    def statistics_document(self, others: Iterable[dict[str, Any]] = ()) -> dict[str, Any]:
        """`others`: documents of Statistics of the other workers."""
        return {"name": self.name, "version": VERSION, **total([self.statistics.document(), *others])}


def served_models(settings: Settings, manifest: Manifest, model: str = DEFAULT_MODEL) -> dict[str, ServedModel]:
    """The two of a model by name, their statistics at zero."""
    platform, backend = RUNTIMES[settings.engine]
    pixels = Tensor("images", "UINT8", (-1, manifest.input.height, manifest.input.width, 3))
    files = Tensor("image", "BYTES", (-1,))
    of = _base_name(settings, manifest, model)
    return {
        name: ServedModel(
            name=name,
            of=model,
            input=tensor,
            output=Tensor("probabilities", "FP32", (-1, len(manifest.classes))),
            labels=manifest.classes,
            views=views,
            max_batch_size=most_images(settings.queue_images, views),
            platform=platform,
            backend=backend,
        )
        for name, tensor, views in ((of, pixels, 1), (of + FILES_SUFFIX, files, settings.views))
    }


def _base_name(settings: Settings, manifest: Manifest, model: str) -> str:
    """The default model has the name of what it was trained on, unless that is another model's or a route's."""
    name = manifest.data_set.name
    taken = {"stats", *settings.folders, *(other + FILES_SUFFIX for other in settings.folders)}
    if model != DEFAULT_MODEL or taken & {name, name + FILES_SUFFIX}:
        return model
    return name
