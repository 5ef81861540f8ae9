"""Learning from other networks' answers (Hinton et al. 2015, arXiv:1503.02531).

Teachers and student see the very same augmented view of an image (Beyer et al. 2022, arXiv:2106.05237). Views are a
fixed number, and teachers answer each once, before the training. Of several teachers the mean logits are taught: their
softmax is the normalised geometric mean of the teachers' probabilities.
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
from training.atomic_files import write_atomically
from training.export.graph import run_graph

ANSWERS = "teacher.safetensors"


def digest_of(teachers: Sequence[bytes]) -> str | None:
    """The sha256 of each graph, in their order."""
    return ", ".join(sha256(graph) for graph in teachers) or None


def teacher_answers(
    folder: Path,
    teachers: Sequence[bytes],
    views: Iterable[Iterable[Tensor]],
    answered: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """float16 logits [views, images, classes] for the batches of each view, in their order.

    Each view is kept in `folder` as soon as it is answered, and not asked for again; `answered` is told their number.
    """
    path, digest = folder / ANSWERS, digest_of(teachers) or ""
    known = list(_kept(path, digest))
    answered(len(known))
    for batches in islice(views, len(known), None):
        known.append(_answers(teachers, batches))
        write_atomically(path, save_safetensors({"logits": torch.stack(known)}, metadata={"teacher": digest}))
        answered(len(known))
    return torch.stack(known)


def distillation_loss(loss: Tensor, logits: Tensor, teacher: Tensor, weight: float, temperature: float) -> Tensor:
    """`loss`, the cross entropy with the labels, and the divergence from the teacher's softened answers, weighed.

    logits, teacher: float [N, classes]. The square of the temperature keeps the gradients' size.
    """
    ours, theirs = (F.log_softmax(one.float() / temperature, dim=1) for one in (logits, teacher))
    divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return (1 - weight) * loss + weight * temperature**2 * divergence


def _kept(path: Path, digest: str) -> Iterable[Tensor]:
    """The logits [images, classes] of each view that is answered."""
    try:
        with safe_open(str(path), framework="pt") as saved:
            if saved.metadata() == {"teacher": digest}:
                logits: Tensor = saved.get_tensor("logits")
                return logits
    except (OSError, SafetensorError):
        pass  # not there yet
    return ()


def _answers(teachers: Sequence[bytes], batches: Iterable[Tensor]) -> Tensor:
    images = torch.cat(list(batches)).numpy()
    return torch.from_numpy(np.mean([run_graph(graph, images) for graph in teachers], axis=0)).half()
