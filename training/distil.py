"""Learning from a larger network's answers (Hinton et al. 2015, arXiv:1503.02531).

Teacher and student see the very same augmented view of an image (Beyer et al. 2022, arXiv:2106.05237). Views are a
fixed number, and the teacher answers each once, before the training.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.nn import functional as F

from app.bundle import Bundle, BundleError, sha256
from training.graph import run_graph
from training.problems import TrainingError
from training.storage import write_atomically

ANSWERS = "teacher.safetensors"


def read_teacher(bundle: Path | None) -> bytes | None:
    """The graph of a bundle. Raises TrainingError when there is none."""
    if bundle is None:
        return None
    try:
        return Bundle.load(bundle).read("model.onnx")
    except BundleError as error:
        raise TrainingError(f"--teacher: {error}") from None


def teacher_answers(folder: Path, graph: bytes, views: Iterable[Iterable[Tensor]]) -> Tensor:
    """float16 logits [views, images, classes] for the batches of each view, in their order; kept in `folder`."""
    path, digest = folder / ANSWERS, sha256(graph)
    try:
        with safe_open(str(path), framework="pt") as saved:
            if saved.metadata() == {"teacher": digest}:
                answers: Tensor = saved.get_tensor("logits")
                return answers
    except (OSError, SafetensorError):
        pass  # not there yet
    logits = torch.stack([_answers(graph, batches) for batches in views])
    write_atomically(path, save_safetensors({"logits": logits}, metadata={"teacher": digest}))
    return logits


def distillation_loss(loss: Tensor, logits: Tensor, teacher: Tensor, weight: float, temperature: float) -> Tensor:
    """`loss`, the cross entropy with the labels, and the divergence from the teacher's softened answers, weighed.

    logits, teacher: float [N, classes]. The square of the temperature keeps the gradients' size.
    """
    ours, theirs = (F.log_softmax(one.float() / temperature, dim=1) for one in (logits, teacher))
    divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return (1 - weight) * loss + weight * temperature**2 * divergence


def _answers(graph: bytes, batches: Iterable[Tensor]) -> Tensor:
    images = torch.cat(list(batches)).numpy()
    return torch.from_numpy(run_graph(graph, images)).half()
