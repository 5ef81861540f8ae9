"""Learning from other networks' answers (Hinton et al. 2015, arXiv:1503.02531).

Teachers and student see the very same augmented view of an image (Beyer et al. 2022, arXiv:2106.05237). The number of
views is fixed, and the teachers answer each of them once, before the training. The student learns the mean of several
teachers' logits: its softmax is the normalised geometric mean of the teachers' probabilities.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.nn import functional as F

from app.bundle.manifest import sha256
from app.bundle.names import GRAPH
from app.bundle.reader import Bundle, BundleError
from app.network.served import ServedNetwork
from training.atomic_files import write_atomically
from training.errors import TrainingError
from training.export.graph import build_graph, run_graph
from training.fit.run_folder import RUN, TEACHER_LOGITS, FinishedRun, check_cifar10, check_split


def read_teacher(folder: Path, split_seed: int) -> bytes:
    """The ONNX graph of the network in `folder`, a bundle or a finished run.

    Raises TrainingError when it is neither, is of other images than CIFAR-10's, or was trained with another split than
    that of `split_seed`.
    """
    check_cifar10("--teacher", folder)
    check_split("--teacher", folder, split_seed)
    if (folder / RUN).exists():
        run = FinishedRun.read(folder)
        if run.graph is not None:
            return run.graph
        served = ServedNetwork(run.model())
        graph: bytes = build_graph(served).SerializeToString(deterministic=True)
        return graph
    try:
        return Bundle.load(folder).read(GRAPH)
    except BundleError as error:
        raise TrainingError(f"--teacher: {error}") from None


def digest_of(teachers: Sequence[bytes]) -> str | None:
    """The sha256 of each graph, in their order, separated by commas; None without teachers."""
    return ", ".join(sha256(graph) for graph in teachers) or None


def teacher_logits(
    folder: Path,
    teachers: Sequence[bytes],
    views: Iterable[Iterable[Tensor]],
    answered: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """float16 logits [views, images, classes] for the batches of each view, in their order.

    Each view is saved in the run's `folder` as soon as it is answered, and never computed again. `answered` is called
    with the number of views that are answered.
    """
    path, digest = folder / TEACHER_LOGITS, digest_of(teachers) or ""
    known = list(_saved(path, digest))
    answered(len(known))
    for batches in islice(views, len(known), None):
        known.append(_mean_logits(teachers, batches))
        write_atomically(path, save_safetensors({"logits": torch.stack(known)}, metadata={"teacher": digest}))
        answered(len(known))
    return torch.stack(known)


def distillation_loss(loss: Tensor, logits: Tensor, teacher: Tensor, weight: float, temperature: float) -> Tensor:
    """The weighted mean of `loss`, the cross entropy with the labels, and the divergence from the teacher.

    logits, teacher: float [N, classes]; both are softened by `temperature`. Its square keeps the gradients' size.
    """
    ours, theirs = (F.log_softmax(one.float() / temperature, dim=1) for one in (logits, teacher))
    divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return (1 - weight) * loss + weight * temperature**2 * divergence


def _saved(path: Path, digest: str) -> Iterable[Tensor]:
    """The logits [images, classes] of each view that is answered already."""
    try:
        with safe_open(str(path), framework="pt") as saved:
            if saved.metadata() == {"teacher": digest}:
                logits: Tensor = saved.get_tensor("logits")
                return logits
    except (OSError, SafetensorError):
        pass  # not there yet
    return ()


def _mean_logits(teachers: Sequence[bytes], batches: Iterable[Tensor]) -> Tensor:
    images = torch.cat(list(batches)).numpy()
    return torch.from_numpy(np.mean([run_graph(graph, images) for graph in teachers], axis=0)).half()
