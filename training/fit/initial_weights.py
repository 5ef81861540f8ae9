"""The weights that a run starts from: torchvision's ImageNet weights, a file, or random weights."""

import urllib.error
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor
from torchvision.models.mobilenetv2 import MobileNet_V2_Weights, MobileNetV2

from app.bundle.manifest import sha256
from app.network.mobilenet import mobilenet_v2
from training.config import Config
from training.data.cifar10 import DESCRIPTION
from training.data.description import Description
from training.errors import TrainingError
from training.fit.run_folder import check_split

HEAD = ("classifier.1.weight", "classifier.1.bias")


def initialise(config: Config, init: str, of: Description = DESCRIPTION) -> tuple[MobileNetV2, str]:
    """A network ready for training, and a digest that names its initial weights.

    `init` is "imagenet" (torchvision's IMAGENET1K_V2, downloaded and cached), "random", or a safetensors
    file with torchvision's names. A classifier for another number of classes is replaced by a new one, and that for a
    user's own classes is always new.
    Raises TrainingError for anything else, and for weights that were trained on images that are held out here.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = mobilenet_v2(config.architecture, len(of.classes), config.input_size)
    if init == "random":
        return network, f"random:{config.seed}"
    if init != "imagenet":
        check_split("--init", Path(init).parent, config.split_seed, of.name)
    weights, digest = _imagenet() if init == "imagenet" else _file(Path(init))
    if not of.is_cifar10:
        weights = {name: value for name, value in weights.items() if name not in HEAD}
    _copy(weights, network, init)
    return network, digest


def _imagenet() -> tuple[dict[str, Tensor], str]:
    weights = MobileNet_V2_Weights.IMAGENET1K_V2
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, RuntimeError, OSError) as error:
        raise TrainingError(
            f"cannot download {weights.url} ({error}): --init is imagenet, random, or a safetensors file"
        ) from None
    return dict(state), f"torchvision:{weights}"


def _file(path: Path) -> tuple[dict[str, Tensor], str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TrainingError(
            f"cannot read --init {path} ({error.strerror}): it is imagenet, random, or a safetensors file"
        ) from None
    try:
        return load_safetensors(content), f"sha256:{sha256(content)}"
    except SafetensorError as error:
        raise TrainingError(f"--init {path} is not a safetensors file ({error})") from None


def _copy(weights: dict[str, Tensor], network: MobileNetV2, source: str) -> None:
    state = network.state_dict()
    if any(name in weights and weights[name].shape != state[name].shape for name in HEAD):
        weights = {name: value for name, value in weights.items() if name not in HEAD}
    for name, value in state.items():
        if name in HEAD or name.endswith("num_batches_tracked"):
            continue  # the head is new, and the counters have no effect
        if name not in weights:
            raise TrainingError(f"--init {source} has no {name}: it must have torchvision's mobilenet_v2 names")
        if weights[name].shape != value.shape:
            raise TrainingError(
                f"--init {source}: {name} has shape {tuple(weights[name].shape)}, {tuple(value.shape)} is needed"
            )
    network.load_state_dict({name: value for name, value in weights.items() if name in state}, strict=False)
