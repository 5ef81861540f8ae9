"""One run in several processes: their ranks, their devices and their communication.

    torchrun --standalone --nproc-per-node 2 -m training fit

Rank 0 leads: only it reads and writes files, averages weights and validates. Each rank computes gradients for its part
of every batch, and DistributedDataParallel adds them up (Li et al. 2020, arXiv:2006.15704). Without torchrun there is
one process, and communication does nothing.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, Literal, NoReturn, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import TrainingError
from training.fit.stop import Stopped

Device = Literal["auto", "cpu", "cuda"]
Result = TypeVar("Result")

TIMEOUT = timedelta(minutes=10)  # for a rank that hangs; the leader needs less to validate and save
PATIENCE = timedelta(days=1)  # while the leader downloads, or computes a teacher's logits
# Words in gloo's errors when another process ended or hangs: its errors have no type.
GLOO = ("gloo", "Application timeout caused pair closure")
SAVED = "the same command, in as many processes as you like, goes on from the last saved step"


class LeaderFailed(TrainingError):
    """Rank 0 failed, and reports the error itself."""


class World:
    """The only process of a run."""

    size, rank = 1, 0

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This rank's slice of `count` items; the slices of all ranks cover every item once."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model`, which then replaces every gradient by its mean over the ranks."""
        return model

    def sum(self, *values: float) -> tuple[float, ...]:
        """The sum over all ranks of each value."""
        return values

    def from_leader(self, call: Callable[[], Result]) -> Result:
        """The result of `call` on rank 0, for all ranks. Raises its error on rank 0, and LeaderFailed on the others."""
        return call()


class Group(World):
    """One of several processes that torchrun started."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        patient = distributed.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(patient, distributed.ProcessGroup)
        self._patient = patient

    def wrap(self, model: nn.Module) -> nn.Module:
        # Each rank's batch norms see only its part of a batch, and the leader's running statistics are copied to all.
        # SyncBatchNorm would communicate at each of 52 layers, forward and backward, and exists for GPUs only.
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def sum(self, *values: float) -> tuple[float, ...]:
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return tuple(total.tolist())

    def from_leader(self, call: Callable[[], Result]) -> Result:
        box: list[Any] = [None]
        try:
            if self.leads:
                box = [(call(),)]
        finally:
            distributed.broadcast_object_list(box, src=0, group=self._patient)
        if box[0] is None:
            raise LeaderFailed("rank 0 has failed")
        result: Result = box[0][0]
        return result


@contextmanager
def join(device: Device = "auto") -> Iterator[World]:
    """The world of this process, from the environment variables of torchrun.

    Raises TrainingError when the device is missing, and when another process of the run ends or hangs.
    """
    if processes() == 1:
        yield World(_device(device, 0))
        return
    chosen = _device(device, int(os.environ["LOCAL_RANK"]))
    backend = "gloo" if chosen.type == "cpu" else "cpu:gloo,cuda:nccl"
    before = signal.signal(signal.SIGTERM, _ended)
    try:
        distributed.init_process_group(backend, timeout=TIMEOUT)
        yield Group(chosen)
        distributed.destroy_process_group()  # after an error this could wait for ranks that are gone
    except Stopped:
        distributed.destroy_process_group()  # all ranks stop together; threads that go on would abort the process
        raise
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or any(words in str(error) for words in GLOO):
            raise TrainingError(f"another process of this run does not answer ({_reason(error)}); {SAVED}") from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def processes() -> int:
    """The number of processes that torchrun started for this run, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """The number of them on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def speaker() -> str:
    """The beginning of an error message: the rank, if there are several processes."""
    return f"rank {os.environ['RANK']}: " if processes() > 1 else ""


def _device(device: Device, local_rank: int) -> torch.device:
    count = 0 if device == "cpu" else torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and count == 0):
        return torch.device("cpu")
    if local_rank >= count:
        raise TrainingError(
            f"--device {device}: this machine has {count} GPUs for {processes_here()} processes: "
            f"start one a GPU, or use --device cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _ended(_: int, __: FrameType | None) -> NoReturn:
    raise TrainingError(f"stopped by SIGTERM, as torchrun does when another process of the run has failed; {SAVED}")


def _reason(error: Exception) -> str:
    """The first sentence of an error of gloo or NCCL, without the position in their sources."""
    first = str(error).splitlines()[0].partition(". ")[0]
    return first.partition("] ")[2] or first
