"""Inference sessions behind one protocol: uint8 images in, logits out; ONNX Runtime by default, PyTorch on demand.

    bundle, session = load_session(settings)
    session.run(images).logits                  # uint8 [N, 32, 32, 3] -> float32 [N, 10]
    session.run(images, maps=True).class_maps   # float32 [N, 10, h, w]

A session is safe to call from several threads at once and computes each call on the caller's thread.
"""

import io
from typing import NamedTuple, Protocol, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from ..bundle.reader import Bundle
from ..settings import Settings

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]

SCORE = "novelty"  # the one that ENGINE=torch can compute; a graph brings its own
SELF_CHECK_TOLERANCE = 1e-2  # of a logit and a score: engines and processors differ in the last digits, damage does not


class SessionError(Exception):
    """The session cannot be built, or fails its self-check; the message is one line for the operator."""


class Outputs(NamedTuple):
    """What the model gives for N images, each float32.

    logits: [N, classes].
    ood_scores: [N], larger for images less like the training images; None for a bundle without abstention.
    class_maps: [N, classes, h, w], what each place of the last map adds to each logit, so that their means over the
    places are the logits (Zhou et al. 2016, arXiv:1512.04150); None unless asked for, and where the graph has none.
    """

    logits: Floats
    ood_scores: Floats | None = None
    class_maps: Floats | None = None

    def part(self, first: int, last: int) -> "Outputs":
        """The outputs of the images from `first` to before `last`; views, not copies."""
        scores, maps = self.ood_scores, self.class_maps
        return Outputs(
            self.logits[first:last],
            None if scores is None else scores[first:last],
            None if maps is None else maps[first:last],
        )


class Session(Protocol):
    def run(self, images: Images, maps: bool = False) -> Outputs:
        """The outputs for uint8 [N, H, W, 3], with class maps if `maps` and the model can give them."""
        ...


class OnnxSession:
    def __init__(self, bundle: Bundle) -> None:
        options = onnxruntime.SessionOptions()
        # The engine's workers are the parallelism: one thread each, and none that spins while it waits.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            bundle.read("model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        given = {output.name for output in self._session.get_outputs()}
        self._scores = bundle.manifest.abstention is not None
        self._maps = "class_maps" in given  # not in the graphs of older bundles
        if self._scores and "ood_score" not in given:
            raise SessionError("the bundle says when to abstain, but its graph gives no ood_score")

    def run(self, images: Images, maps: bool = False) -> Outputs:
        # What is not named here is computed all the same, the maps at no cost that could be measured: released builds
        # of ONNX Runtime ignore the option only_execute_path_to_fetches.
        names = ["logits"]
        if self._scores:
            names.append("ood_score")
        if maps and self._maps:
            names.append("class_maps")
        computed = cast(list[Floats], self._session.run(names, {"images": images}))
        outputs = dict(zip(names, computed, strict=True))
        return Outputs(outputs["logits"], outputs.get("ood_score"), outputs.get("class_maps"))


class TorchSession:
    """The same weights in PyTorch, on a GPU where there is one."""

    def __init__(self, bundle: Bundle) -> None:
        try:
            import torch
            from safetensors.torch import load

            from ..network.mobilenet import Preprocessed, mobilenet_v2
            from ..network.novelty import Novelty
            from ..network.served import ServedNetwork
        except ImportError as error:
            raise SessionError(
                f"ENGINE=torch needs the extra 'torch' ({error}); ENGINE=onnx needs nothing more"
            ) from None
        manifest, abstention = bundle.manifest, bundle.manifest.abstention
        if abstention and abstention.method != SCORE:
            raise SessionError(f"abstention: ENGINE=torch can compute {SCORE}, not {abstention.method[:40]!r}")
        if abstention and "novelty.safetensors" not in bundle:
            raise SessionError("the bundle says when to abstain, but holds no novelty.safetensors for ENGINE=torch")
        network = mobilenet_v2(manifest.architecture, len(manifest.classes))
        network.load_state_dict(load(bundle.read("checkpoint.safetensors")))
        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        novelty = None
        if abstention:
            tensors = load(bundle.read("novelty.safetensors"))
            novelty = Novelty(**{name: tensor.to(self._device) for name, tensor in tensors.items()})
        model = Preprocessed(network, manifest.input.mean, manifest.input.std).to(self._device)
        self._network = ServedNetwork(model, novelty).eval()

    def run(self, images: Images, maps: bool = False) -> Outputs:
        torch = self._torch
        if torch.get_num_threads() != 1:  # the number is each calling thread's own
            torch.set_num_threads(1)
        with torch.inference_mode():
            computed = self._network(torch.tensor(images, device=self._device), maps)
        scores, class_maps = computed.ood_scores, computed.class_maps
        return Outputs(
            computed.logits.cpu().numpy(),
            None if scores is None else scores.cpu().numpy(),
            None if class_maps is None else class_maps.cpu().numpy(),
        )


def load_session(settings: Settings) -> tuple[Bundle, Session]:
    """Load and verify the bundle, build the session and let it prove itself on the bundle's own image.

    Raises BundleError or SessionError.
    """
    bundle = Bundle.load(settings.model_dir)
    session: Session = OnnxSession(bundle) if settings.engine == "onnx" else TorchSession(bundle)
    for weights in ("model.onnx", "checkpoint.safetensors", "novelty.safetensors"):
        bundle.forget(weights)
    self_check(session, bundle)
    return bundle, session


def self_check(session: Session, bundle: Bundle) -> None:
    """Raises SessionError unless the session gives the logits, and the score, that the bundle says it must."""
    check = bundle.manifest.self_check
    with Image.open(io.BytesIO(check.image), formats=["PNG"]) as picture:
        image = np.asarray(picture.convert("RGB"))
    outputs = session.run(image[None])
    difference = float(np.abs(outputs.logits[0] - np.array(check.logits, np.float32)).max())
    if not difference <= SELF_CHECK_TOLERANCE:
        raise SessionError(f"the model fails its self-check: a logit is off by {difference:.3g}")
    if check.ood_score is not None and outputs.ood_scores is not None:
        score = float(outputs.ood_scores[0])
        if not abs(score - check.ood_score) <= SELF_CHECK_TOLERANCE:
            raise SessionError(
                f"the model fails its self-check: its ood_score is {score:.4g}, not {check.ood_score:.4g}"
            )
