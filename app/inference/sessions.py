"""Inference sessions behind one protocol: uint8 images in, logits out; ONNX Runtime by default, PyTorch on demand.

    bundle, session = load_session(settings)
    session.run(images).logits                  # uint8 [N, height, width, 3] -> float32 [N, classes]
    session.run(photographs).logits             # likewise, in the size of photographs, if the bundle has them
    session.run(images, maps=True).class_maps   # float32 [N, classes, h, w]

A session is safe to call from several threads at once and computes each call on the caller's thread.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from ..bundle.manifest import Manifest, SelfCheck
from ..bundle.names import CHECKPOINT, CLASS_MAPS, GRAPH, INPUT, LOGITS, MANIFEST, NOVELTY, OOD_SCORE
from ..bundle.reader import Bundle, BundleError
from ..remote import local_folder
from ..settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]
Shape = tuple[int | str, ...]

SCORE = "novelty"  # the one that ENGINE=torch can compute; a graph brings its own
ANY = "any"  # size of a dimension
# ONNX Runtime's names, and the packages on PyPI that have them in place of `onnxruntime`.
PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime, on macOS"),
}
LONGEST_REASON = 300  # characters that are shown of another library's error


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
        """The outputs for uint8 [N, H, W, 3], with class maps if `maps` and the model can give them.

        All images are thumbnails or all are photographs, of the size that the manifest says.
        """
        ...

    def release_memory(self) -> None:
        """Return the memory that large batches needed and that the library keeps for the next ones."""


class OnnxSession:
    """`provider` is one of PROVIDERS."""

    def __init__(self, bundle: Bundle, provider: str = "cpu") -> None:
        wanted = _provider(provider)
        options = onnxruntime.SessionOptions()
        # The engine's workers are the parallelism: one thread each, and none that spins while it waits.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors are raised too, and one line is enough
        options.add_session_config_entry("session.strict_shape_type_inference", "1")  # declared shapes must be true
        options.add_session_config_entry("session.load_model_format", "ONNX")  # what the bundle's reader has checked
        try:
            self._session = onnxruntime.InferenceSession(bundle.read(GRAPH), options, providers=[wanted])
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        except Exception as error:  # ONNX Runtime's errors share no class of their own
            raise SessionError(f"{GRAPH} cannot be loaded: {_one_line(error)}") from None
        # It takes the processor where the libraries of the other one are missing, and tells nobody.
        if self._session.get_providers()[0] != wanted:
            raise SessionError(f"EXECUTION_PROVIDER={provider}: it cannot start (are its libraries installed?)")
        manifest = bundle.manifest
        height, width, classes = manifest.input.height, manifest.input.width, len(manifest.classes)
        if [tensor.name for tensor in inputs] != [INPUT]:
            raise SessionError(f"{GRAPH} must have one input, {INPUT}")
        given = {tensor.name: tensor for tensor in outputs}
        if LOGITS not in given:
            raise SessionError(f"{GRAPH} gives no {LOGITS}")
        self._scores = _graph_scores(manifest)
        self._maps = CLASS_MAPS in given  # not in the graphs of older bundles
        if self._scores and OOD_SCORE not in given:
            raise SessionError(f"the bundle abstains by the graph's own score, but its graph gives no {OOD_SCORE}")
        photographs = manifest.photographs or manifest.input
        one_size = (photographs.height, photographs.width) == (height, width)
        self._image = np.zeros((1, height, width, 3), np.uint8)
        size: Shape = (height, width) if one_size else ("N", "N")  # of several sizes, the graph declares none
        _check_declared(inputs[0], "tensor(uint8)", ("N", *size, 3))
        _check_declared(given[LOGITS], "tensor(float)", ("N", classes))
        if self._scores:
            _check_declared(given[OOD_SCORE], "tensor(float)", ("N",))
        if self._maps:
            _check_declared(given[CLASS_MAPS], "tensor(float)", ("N", classes, ANY, ANY))

    def run(self, images: Images, maps: bool = False) -> Outputs:
        # What is not named here is computed all the same, the maps at no cost that could be measured: released builds
        # of ONNX Runtime ignore the option only_execute_path_to_fetches.
        names = [LOGITS]
        if self._scores:
            names.append(OOD_SCORE)
        if maps and self._maps:
            names.append(CLASS_MAPS)
        computed = cast(list[Floats], self._session.run(names, {INPUT: images}))
        outputs = dict(zip(names, computed, strict=True))
        return Outputs(outputs[LOGITS], outputs.get(OOD_SCORE), outputs.get(CLASS_MAPS))

    def release_memory(self) -> None:
        """A batch of 32 images needs 110 MB. The arena shrinks at the end of a run that asks for it."""
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._session.run([LOGITS], {INPUT: self._image}, options)


def _provider(name: str) -> str:
    """Raises SessionError if the installed ONNX Runtime does not have it."""
    wanted, package = PROVIDERS[name]
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        has = ", ".join(available)
        raise SessionError(f"EXECUTION_PROVIDER={name}: {name} comes with {package}; this ONNX Runtime has {has}")
    return wanted


def _graph_scores(manifest: Manifest) -> bool:
    """Whether the network itself gives the out-of-distribution score, as in bundles before 1.5.0."""
    return manifest.abstention is not None and manifest.abstention.temperature is None


def _check_declared(tensor: onnxruntime.NodeArg, kind: str, expected: Shape) -> None:
    """Raises SessionError unless the graph declares this type and shape."""
    if tensor.type != kind or not _fits(tensor.shape, expected):
        raise SessionError(
            f"{GRAPH}: {tensor.name} is {tensor.type[:40]} {str(tensor.shape)[:80]}, "
            f"but {MANIFEST} asks for {kind} {list(expected)}"
        )


class TorchSession:
    """The same weights in PyTorch, on a GPU where there is one."""

    def __init__(self, bundle: Bundle) -> None:
        if bundle.manifest.quantisation:
            name = bundle.manifest.name
            raise SessionError(f"ENGINE=torch cannot run {name}, a graph of 8-bit integers: ENGINE=onnx does")
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
        scores = _graph_scores(manifest)
        if abstention and scores and abstention.method != SCORE:
            raise SessionError(f"abstention: ENGINE=torch can compute {SCORE}, not {abstention.method[:40]!r}")
        if scores and NOVELTY not in bundle:
            raise SessionError(f"the bundle abstains by {SCORE}, but holds no {NOVELTY} for ENGINE=torch")
        network = mobilenet_v2(manifest.architecture, len(manifest.classes), manifest.input.height)
        forms = {name: (str(tensor.dtype), tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
        network.load_state_dict(_read_tensors(bundle, CHECKPOINT, load, forms))
        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        novelty = None
        if scores:
            width = network.last_channel
            tensors = _read_tensors(bundle, NOVELTY, load, _novelty_forms(width))
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

    def release_memory(self) -> None:
        """PyTorch keeps no memory of the processor's; that of a GPU is not the process's."""


def _read_tensors(
    bundle: Bundle, file: str, load: Callable[[bytes], dict[str, "Tensor"]], forms: dict[str, tuple[str, Shape]]
) -> dict[str, "Tensor"]:
    """The tensors of a safetensors file. Raises SessionError unless they have exactly these names, types and shapes."""
    try:
        tensors = load(bundle.read(file))
    except Exception as error:  # safetensors raises of several classes
        raise SessionError(f"{file} cannot be loaded: {_one_line(error)}") from None
    for name in sorted(tensors.keys() | forms.keys()):
        if name not in forms:
            raise SessionError(f"{file}: this network has no tensor {name[:80]!r}")
        if name not in tensors:
            raise SessionError(f"{file}: {name} is missing")
        kind, shape = forms[name]
        tensor = tensors[name]
        if str(tensor.dtype) != kind or not _fits(tensor.shape, shape):
            raise SessionError(
                f"{file}: {name} is {tensor.dtype} {str(list(tensor.shape))[:80]}, "
                f"this network needs {kind} {list(shape)}"
            )
    return tensors


def _novelty_forms(channels: int) -> dict[str, tuple[str, Shape]]:
    """Types and shapes of app.network.novelty.Novelty, for a network with so many features."""
    return {
        "neighbours": ("torch.float16", (ANY, channels)),
        "centre": ("torch.float32", (channels,)),
        "unusual": ("torch.float16", (channels, ANY)),
        "mean": ("torch.float32", (2,)),
        "deviation": ("torch.float32", (2,)),
    }


def _fits(shape: Sequence[int | str | None], expected: Shape) -> bool:
    """Whether a shape is the expected one: "N" stands for a size that the graph leaves open, ANY for any size."""
    return len(shape) == len(expected) and all(
        want == ANY or (not isinstance(have, int) if want == "N" else have == want)
        for have, want in zip(shape, expected, strict=True)
    )


def load_session(settings: Settings) -> tuple[Bundle, Session]:
    """Load and verify the bundle, build the session and let it prove itself on the bundle's own image.

    Raises BundleError or SessionError.
    """
    folder = local_folder(settings.model_dir, settings.model_cache, settings.model_digest)
    bundle = Bundle.load(folder)
    digest = bundle.manifest.digest
    if settings.model_digest and digest not in settings.model_digest:
        raise BundleError(f"{folder}: MODEL_DIGEST does not name its digest, {digest}")
    session: Session = (
        OnnxSession(bundle, settings.execution_provider) if settings.engine == "onnx" else TorchSession(bundle)
    )
    for weights in (GRAPH, CHECKPOINT, NOVELTY):
        bundle.forget(weights)
    self_check(session, bundle)
    return bundle, session


def self_check(session: Session, bundle: Bundle) -> None:
    """Raises SessionError unless the session gives the logits, and the score, that the bundle says it must.

    A thumbnail and a photograph are computed alone and as batches of two, with class maps, and every output must have
    its shape.
    """
    manifest = bundle.manifest
    _self_check(session, manifest, manifest.self_check, (manifest.input.height, manifest.input.width))
    if manifest.photographs and manifest.photograph_self_check:
        size = manifest.photographs.height, manifest.photographs.width
        _self_check(session, manifest, manifest.photograph_self_check, size)


def _self_check(session: Session, manifest: Manifest, check: SelfCheck, size: tuple[int, int]) -> None:
    """The check with one image, which must have this height and width."""
    image = _self_check_image(check, size)
    for count in (1, 2):
        try:
            outputs = session.run(np.stack([image] * count), maps=True)
        except Exception as error:  # whatever the engine raises
            raise SessionError(f"the model fails its self-check: {_one_line(error)}") from None
        _check_computed(outputs, count, len(manifest.classes))
        difference = float(np.abs(outputs.logits - np.array(check.logits)).max())
        if not difference <= check.tolerance:
            raise SessionError(f"the model fails its self-check: a logit is off by {difference:.3g}")
        if check.ood_score is not None and outputs.ood_scores is not None:
            worst = max(outputs.ood_scores.tolist(), key=lambda score: abs(score - check.ood_score))
            if not abs(worst - check.ood_score) <= check.tolerance:
                raise SessionError(
                    f"the model fails its self-check: its ood_score is {worst:.4g}, not {check.ood_score:.4g}"
                )


def _self_check_image(check: SelfCheck, size: tuple[int, int]) -> Images:
    height, width = size
    expected = width, height
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow warns of large pictures
            with Image.open(io.BytesIO(check.image), formats=["PNG"]) as picture:
                if picture.size == expected:
                    return np.asarray(picture.convert("RGB"))
                has = picture.size
    except Exception as error:  # Pillow raises of many classes
        raise SessionError(f"self_check: its image is no PNG of a model's input ({type(error).__name__})") from None
    raise SessionError(
        f"self_check: its image has {has[0]} x {has[1]} pixels, the model's input {expected[0]} x {expected[1]}"
    )


def _check_computed(outputs: Outputs, count: int, classes: int) -> None:
    """Raises SessionError unless all outputs for `count` images are finite float32 numbers of the right shape."""
    logits, scores, maps = outputs
    shapes = {LOGITS: (logits, (count, classes)), OOD_SCORE: (scores, (count,))}
    if maps is not None:
        shapes[CLASS_MAPS] = maps, (count, classes, *maps.shape[2:4])
    for name, (array, expected) in shapes.items():
        if array is None:
            continue
        if array.shape != expected or array.dtype != np.float32 or 0 in array.shape or array.ndim == 3:
            raise SessionError(
                f"the model fails its self-check: its {name} for {count} images are "
                f"{array.dtype} {list(array.shape)}, not float32 {list(expected)}"
            )
        if not np.isfinite(array).all():
            raise SessionError(f"the model fails its self-check: its {name} are not all finite")


def _one_line(error: Exception) -> str:
    """Its message; of a long one the end, since ONNX Runtime begins with the place in its sources."""
    return " ".join(str(error).split())[-LONGEST_REASON:]
