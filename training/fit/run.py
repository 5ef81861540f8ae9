"""The training loop: AdamW, a cosine, averaged weights; it can be killed at any moment and resumed, bit for bit.

A run lives in a folder:

    run.json            what was asked for, on what data, from which weights
    state.safetensors   everything needed to go on; replaced as a whole every few minutes
    teacher.safetensors what teachers answered, where there are any; grows view by view
    history.csv         a row an epoch
    weights.safetensors the averaged weights, when the run has finished

All randomness is a function of (seed, epoch, step), so there is no generator to save. The bits are the same
for the same number of threads. Several processes share each batch (`training.fit.distributed`); a run may go on in
another number of them.
"""

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from app.bundle.report import Epoch
from app.network.mobilenet import Preprocessed
from training.atomic_files import write_atomically
from training.config import IMAGENET_MEAN, IMAGENET_STD, Config
from training.data import augment
from training.data.cifar10 import LabelledImages
from training.errors import TrainingError
from training.evaluate.network_outputs import predict_logits
from training.fit.distil import digest_of, distillation_loss, teacher_answers
from training.fit.distributed import World
from training.fit.initial_weights import initialise
from training.fit.precision import mixed, prepare
from training.fit.schedule import learning_rate
from training.provenance import continued, environment

STATE, HISTORY, WEIGHTS, RUN = "state.safetensors", "history.csv", "weights.safetensors", "run.json"
SAVE_EVERY_SECONDS = 120.0


@dataclass(frozen=True)
class Progress:
    """Where a run is, saved beside its tensors. Sums are over the images of the current epoch."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps finished in the current epoch
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    epoch_seconds: float = 0.0
    cpu_seconds: float = 0.0  # over the whole run, all threads and processes
    history: list[dict[str, Any]] = field(default_factory=list)


class Saved(NamedTuple):
    """What a run goes on from."""

    tensors: dict[str, Tensor]
    progress: Progress


class Watcher(Protocol):
    """Whoever wants to see a run's progress."""

    def __call__(self, progress: Progress, steps: int, total_steps: int, images_per_second: float) -> None: ...


class Run:
    """One run in its folder.

    Raises TrainingError when the folder holds another run, is not writable, or its state is damaged.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        init: str,
        train: LabelledImages,
        select: LabelledImages,
        teachers: Sequence[bytes] = (),
        world: World | None = None,
    ) -> None:
        """`teachers` are ONNX graphs to learn from; `world`, the processes that share the run: without it, this one."""
        self.world = world or World()
        self.folder = folder
        self.config = config
        self.train = train
        self.select = select
        self.steps_per_epoch = len(train.labels) // config.batch_size
        if self.steps_per_epoch == 0:
            raise TrainingError(
                f"batch_size is {config.batch_size}: it must be at most {len(train.labels)}, the training images"
            )
        if config.batch_size < 2 * self.world.size:
            raise TrainingError(
                f"batch_size is {config.batch_size}: for {self.world.size} processes it must be at least "
                f"{2 * self.world.size}, for batch norms need two images each"
            )
        if config.ema_every > config.epochs * self.steps_per_epoch:
            raise TrainingError(
                f"ema_every is {config.ema_every}: it must be at most {config.epochs * self.steps_per_epoch}, "
                f"the steps of the run, or weights are never averaged"
            )
        if teachers and not config.views:
            raise TrainingError("views is 0: with a teacher it must be at least 1, for it answers each view once")
        self.teachers = teachers
        network, init_digest = self.world.from_leader(lambda: initialise(config, init))
        prepare(network, config.precision, self.world.device)
        self.model = Preprocessed(network, IMAGENET_MEAN, IMAGENET_STD).to(self.world.device)
        self.averaged = {name: value.clone() for name, value in network.state_dict().items()}
        self.optimizer = _optimizer(network, config)
        self.progress = Progress()
        saved = self.world.from_leader(lambda: self._claim(init_digest))
        if saved is not None:
            self._restore(saved)
        self.parallel = self.world.wrap(self.model)

    def _claim(self, init_digest: str) -> Saved | None:
        """Write run.json, or read the state of the run that is here if it is the same one."""
        identity: dict[str, Any] = {
            "config": self.config.as_dict(),
            "initial_weights": init_digest,
            "train_data": self.train.digest(),
            "selection_data": self.select.digest(),
        }
        if self.teachers:
            identity["teacher"] = digest_of(self.teachers)
        path = self.folder / RUN
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                self._record(identity, self.progress)
                return None
            found = json.loads(path.read_bytes())
            differences = self.config.differences(found["config"])
            names = ("initial_weights", "train_data", "selection_data", "teacher")
            differences += [f"{name} differ" for name in names if identity.get(name) != found.get(name)]
        except OSError as error:
            raise TrainingError(
                f"--run-dir {self.folder} cannot be used ({error.strerror}): name a folder that can be written"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{path} is damaged ({error}): delete the folder to start the run again") from None
        if differences:
            raise TrainingError(
                f"--run-dir {self.folder} holds another run: {'; '.join(differences)}. "
                f"Use its values, or another folder"
            )
        saved = self._saved()
        progress = self.progress if saved is None else saved.progress
        if progress.epoch < self.config.epochs:
            self._record(found, progress)
        return saved

    def _record(self, run: dict[str, Any], progress: Progress) -> None:
        """Write run.json with the environment that the run goes on in: it goes into the bundle."""
        here = environment(self.world.size, self.world.device)
        content = json.dumps(continued(run, here, progress.epoch, progress.step), indent=2)
        write_atomically(self.folder / RUN, content.encode())

    def fit(self, watch: Watcher | None = None, answered: Callable[[int], None] = lambda _: None) -> Path:
        """Train to the end; the path of the averaged weights. `answered` is told how many views teachers have answered.

        Raises TrainingError when the loss is not finite.
        """
        answers = self.world.from_leader(lambda: self._teacher_answers(answered))
        with _denormals_flushed():
            while self.progress.epoch < self.config.epochs:
                self._train_epoch(watch, answers)
                self._finish_epoch()
                self._save()
        return self.world.from_leader(self._write_weights)

    def _write_weights(self) -> Path:
        weights = self.folder / WEIGHTS
        write_atomically(weights, save_safetensors(_packed(self.averaged)))
        return weights

    def _teacher_answers(self, answered: Callable[[int], None] = lambda _: None) -> Tensor | None:
        if not self.teachers:
            return None
        wanted = range(min(self.config.views, self.config.epochs))
        views = ((images for _, images in self._batches(view, World())) for view in wanted)
        return teacher_answers(self.folder, self.teachers, views, answered)

    def _batches(self, view: int, world: World, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices and augmented images of this process's part of a view's batches, from number `first` on."""
        config = self.config
        order = torch.randperm(len(self.train.labels), generator=_generator(config.seed, view, 0))
        mirrored = augment.alternating_flips(len(order), view, config.seed)
        for step in range(first, self.steps_per_epoch):
            batch = order[step * config.batch_size : (step + 1) * config.batch_size]
            part = world.part(len(batch))
            lot = augment.Lot(_generator(config.seed, view, step + 1), len(batch), part)
            yield batch[part], self._augmented(batch[part], mirrored, lot)

    def _train_epoch(self, watch: Watcher | None, answers: Tensor | None) -> None:
        config, epoch = self.config, self.progress.epoch
        total = config.epochs * self.steps_per_epoch
        view = epoch % config.views if config.views else epoch
        self.model.train()
        clock, cpu_clock = time.perf_counter(), time.process_time()
        saved = clock
        begun = self.progress.step
        part = self.world.part(config.batch_size)
        for step, (batch, images) in enumerate(self._batches(view, self.world, begun), begun):
            done = epoch * self.steps_per_epoch + step
            taught = None if answers is None else answers[view, step * config.batch_size :][: config.batch_size][part]
            loss, correct = self._step(images, self.train.labels[batch], taught, done, total)
            if (done + 1) % config.ema_every == 0 and self.world.leads:
                self._average((done + 1) // config.ema_every)
            now, cpu_now = time.perf_counter(), time.process_time()
            loss_sum, correct_sum, cpu = self.world.sum(loss * len(batch), correct, cpu_now - cpu_clock)
            if not math.isfinite(loss_sum):
                raise self._diverged(loss_sum, done, total)
            self.progress = replace(
                self.progress,
                step=step + 1,
                loss_sum=self.progress.loss_sum + loss_sum,
                correct=self.progress.correct + int(correct_sum),
                seen=self.progress.seen + config.batch_size,
                epoch_seconds=self.progress.epoch_seconds + now - clock,
                cpu_seconds=self.progress.cpu_seconds + cpu,
            )
            clock, cpu_clock = now, cpu_now
            if watch is not None:
                watch(self.progress, done + 1, total, self.progress.seen / self.progress.epoch_seconds)
            if now - saved > SAVE_EVERY_SECONDS:
                self._save()
                saved = now

    def _augmented(self, batch: Tensor, mirrored: Tensor, lot: augment.Lot) -> Tensor:
        images = self.train.images[batch]
        if self.config.flip:
            images = augment.flip(images, mirrored[batch])
        images = augment.shift(images, self.config.shift, lot)
        images = augment.zoom(images, self.config.zoom, lot)
        images = augment.colour(images, self.config.colour, lot)
        return augment.cutout(images, self.config.cutout, lot)

    def _step(self, images: Tensor, labels: Tensor, taught: Tensor | None, done: int, total: int) -> tuple[float, int]:
        """This process's part of a step: the mean loss of its images, and how many it had right."""
        config, device = self.config, self.world.device
        rate = learning_rate(done, steps=total, peak=config.lr, warmup=config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        labels = labels.to(device)
        self.optimizer.zero_grad(set_to_none=True)
        with mixed(config.precision, device):
            logits = self.parallel(images.to(device)).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        if taught is not None:
            weight, temperature = config.teacher_weight, config.teacher_temperature
            loss = distillation_loss(loss, logits, taught.to(device), weight, temperature)
        # The mean over ranks of these is the gradient of the batch's mean, even if parts differ in size.
        share = len(images) * self.world.size / config.batch_size
        (loss * share).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item(), int((logits.argmax(1) == labels).sum())

    def _diverged(self, loss: float, done: int, total: int) -> TrainingError:
        rate = learning_rate(done, steps=total, peak=self.config.lr, warmup=self.config.warmup)
        return TrainingError(
            f"the loss became {loss} in epoch {self.progress.epoch + 1}, step {self.progress.step + 1}, "
            f"at a learning rate of {rate:.2g}: try a lower --lr in another --run-dir "
            f"(the last sound state stays in {self.folder})"
        )

    @torch.no_grad()
    def _average(self, update: int) -> None:
        """Exponential moving average of weights and running statistics, slower as it gets better founded."""
        decay = min(self.config.ema_decay, (1 + update) / (10 + update))
        for name, value in self.model.network.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - decay)
            else:
                self.averaged[name].copy_(value)

    def _finish_epoch(self) -> None:
        now = self.progress
        if not self.world.leads:
            self.progress = Progress(epoch=now.epoch + 1)
            return
        cpu_clock = time.process_time()
        loss, accuracy = self._validate()
        cpu_seconds = now.cpu_seconds + time.process_time() - cpu_clock
        steps = self.config.epochs * self.steps_per_epoch
        row = Epoch(
            epoch=now.epoch + 1,
            lr=learning_rate(
                (now.epoch + 1) * self.steps_per_epoch - 1, steps=steps, peak=self.config.lr, warmup=self.config.warmup
            ),
            train_loss=now.loss_sum / now.seen,
            train_accuracy=now.correct / now.seen,
            validation_loss=loss,
            validation_accuracy=accuracy,
            seconds=round(now.epoch_seconds, 1),
        )
        history = [*now.history, row.model_dump()]
        self.progress = Progress(epoch=now.epoch + 1, cpu_seconds=cpu_seconds, history=history)
        write_atomically(self.folder / HISTORY, history_csv(history).encode())

    def _validate(self) -> tuple[float, float]:
        """Loss and accuracy of the averaged weights on the selection split."""
        network = self.model.network
        live = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self.averaged)
        images, labels = (tensor.to(self.world.device) for tensor in self.select)
        logits = predict_logits(self.model, images)
        network.load_state_dict(live)
        loss = F.cross_entropy(logits, labels).item()
        return loss, (logits.argmax(1) == labels).float().mean().item()

    def _save(self) -> None:
        if not self.world.leads:
            return
        tensors = {f"live.{name}": value for name, value in self.model.network.state_dict().items()}
        tensors |= {f"averaged.{name}": value for name, value in self.averaged.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        # The JSON travels inside the one file: two files could be of two moments after a kill.
        content = save_safetensors(_packed(tensors), metadata={"progress": json.dumps(asdict(self.progress))})
        write_atomically(self.folder / STATE, content)

    def _saved(self) -> Saved | None:
        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as saved:
                tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 (not a mapping)
                return Saved(tensors, Progress(**json.loads(saved.metadata()["progress"])))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{path} is damaged ({error}): delete the folder to start the run again") from None

    def _restore(self, saved: Saved) -> None:
        tensors, self.progress = saved
        self.model.network.load_state_dict(_part(tensors, "live."))
        self.averaged = {name: value.to(self.world.device) for name, value in _part(tensors, "averaged.").items()}
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        template = self.optimizer.state_dict()
        template["state"] = {index: {} for index in range(len(parameters))}
        for name, value in _part(tensors, "optimizer.").items():
            index, key = name.split(".")
            like = parameters[int(index)]
            # The fused step walks memory: a moment must lie as its parameter does, or bits end up elsewhere.
            moment = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            template["state"][int(index)][key] = moment
        self.optimizer.load_state_dict(template)


def history_csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(Epoch.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _optimizer(network: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), decaying filters but not norms and biases."""
    filters = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": filters, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def _generator(seed: int, epoch: int, step: int) -> torch.Generator:
    # Distinct for every epoch below a thousand and step below a million.
    return torch.Generator().manual_seed((seed * 1_000 + epoch) * 1_000_000 + step)


def _packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in tensors.items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Averages that decay towards zero become denormal numbers, which CPUs add a hundred times slower."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
