"""The training loop: AdamW, a cosine schedule, averaged weights. A killed run is resumed bit for bit.

`training.fit.run_folder` describes the folder that a run lives in, `training.fit.checkpoint` the state it resumes from.

All randomness is a function of (seed, epoch, step), so no generator needs to be saved. The same number of threads gives
the same bits. Several processes share each batch (`training.fit.distributed`); a run may go on in another number of
processes.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from app.bundle.report import Epoch
from app.network.mobilenet import Preprocessed
from training.atomic_files import write_atomically
from training.config import IMAGENET_MEAN, IMAGENET_STD, Config
from training.data import augment
from training.data.cifar10 import DESCRIPTION, LabelledImages
from training.data.description import Description
from training.errors import TrainingError
from training.evaluate.network_outputs import predict_logits
from training.fit.balance import class_weights
from training.fit.checkpoint import Progress, contiguous, restore_optimizer, save_checkpoint
from training.fit.distributed import LeaderFailed, World
from training.fit.initial_weights import initialise
from training.fit.metrics import Board, Metrics
from training.fit.photographs import BothSizes, PhotographBatches
from training.fit.precision import mixed, prepare
from training.fit.run_folder import HISTORY, METRICS, STATE, WEIGHTS, claim, history_csv
from training.fit.schedule import learning_rate
from training.fit.stop import Stopped, StopRequest
from training.fit.teachers import digest_of, distillation_loss, teacher_logits
from training.provenance import environment

SAVE_EVERY_SECONDS = 120.0
PHOTOGRAPH_STREAM = 500_000  # random numbers of photographs are those of steps that no epoch reaches


class Watcher(Protocol):
    """Called after every step."""

    def __call__(self, progress: Progress, steps: int, total_steps: int, images_per_second: float) -> None: ...


class Run:
    """One run in its folder.

    Raises TrainingError when the configuration does not fit the data, when the folder holds another run or is not
    writable, and when the state in it is damaged.
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
        photographs: LabelledImages | None = None,
        of: Description = DESCRIPTION,
    ) -> None:
        """`teachers` are ONNX graphs to learn from; `world` holds the processes that share the run, by default one.

        `photographs` are seen in every step if config.photograph_batch is not 0; see `training.fit.photographs`.
        `of` describes the images; rare classes count for more, but not of CIFAR-10, which has none.
        """
        self.folder, self.config, self.train, self.select = folder, config, train, select
        self.teachers, self.world = teachers, world or World()
        self.steps_per_epoch = len(train.labels) // config.batch_size
        _check(config, len(train.labels), self.world.size, bool(teachers), photographs is not None)
        network, init_digest = self.world.from_leader(lambda: initialise(config, init, of))
        prepare(network, config.precision, self.world.device)
        self.model = Preprocessed(network, IMAGENET_MEAN, IMAGENET_STD).to(self.world.device)
        self.averaged = {name: value.clone() for name, value in network.state_dict().items()}
        self.optimizer = _optimizer(network, config)
        self.progress = Progress()
        identity: dict[str, Any] = {
            "initial_weights": init_digest,
            "train_data": train.digest(),
            "selection_data": select.digest(),
        }
        if not of.is_cifar10:
            identity["data_set"] = of.as_dict()
        if teachers:
            identity["teacher"] = digest_of(teachers)
        self.photographs: PhotographBatches | None = None
        if photographs is not None and config.photograph_batch:
            self.photographs = PhotographBatches(photographs, config.photograph_batch, len(of.classes))
            identity["photographs"] = len(photographs.labels)
            identity["photograph_data"] = photographs.digest()
        here = environment(self.world.size, self.world.device)
        checkpoint = self.world.from_leader(lambda: claim(folder, config, identity, here))
        if checkpoint is not None:
            self.progress = checkpoint.progress
            network.load_state_dict(checkpoint.part("live."))
            averaged = checkpoint.part("averaged.")
            self.averaged = {name: value.to(self.world.device) for name, value in averaged.items()}
            restore_optimizer(self.optimizer, checkpoint.part("optimizer."))
        side = config.input_size * config.architecture.enlarge
        entrance = BothSizes(self.model, side) if self.photographs else self.model
        self.parallel = self.world.wrap(entrance)
        self.weights = None if of.is_cifar10 else class_weights(train.labels).to(self.world.device)

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    @property
    def steps_done(self) -> int:
        return self.progress.epoch * self.steps_per_epoch + self.progress.step

    def fit(
        self,
        watch: Watcher | None = None,
        answered: Callable[[int], None] = lambda _: None,
        board: Board | None = None,
    ) -> Path:
        """Train to the end and return the path of the averaged weights.

        `answered` gets the number of answered views, and `board` the figures that metrics.jsonl gets.
        Raises TrainingError when the loss is not finite, and Stopped after Ctrl-C or SIGTERM.
        """
        config, world = self.config, self.world
        total = self.total_steps
        metrics = Metrics(self.folder / METRICS, self.progress, self.steps_done, board) if world.leads else None
        targets = world.from_leader(lambda: self._teacher_logits(answered))
        with _denormals_flushed(), StopRequest() as stop:
            while self.progress.epoch < config.epochs:
                epoch, first = self.progress.epoch, self.progress.step
                view = epoch % config.views if config.views else epoch
                self.model.train()
                clock, cpu_clock = time.perf_counter(), time.process_time()
                saved = clock

                for step, (batch, images) in enumerate(self._batches(view, world, first), first):
                    done = epoch * self.steps_per_epoch + step
                    rate = learning_rate(done, steps=total, peak=config.lr, warmup=config.warmup)
                    target = None if targets is None else self._part_of_batch(targets[view], step)
                    random = _generator(config.seed, epoch, PHOTOGRAPH_STREAM + step)
                    loss, correct = self._step(images, self.train.labels[batch], target, rate, random)
                    if (done + 1) % config.ema_every == 0 and world.leads:
                        self._average((done + 1) // config.ema_every)

                    now, cpu_now = time.perf_counter(), time.process_time()
                    # All processes stop after the same step, whichever of them got the signal.
                    loss_sum, correct_sum, cpu, stops = world.sum(
                        loss * len(batch), correct, cpu_now - cpu_clock, stop.number
                    )
                    if not math.isfinite(loss_sum):
                        raise self._diverged(loss_sum, rate)
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
                    if metrics is not None:
                        metrics.trained(done + 1, self.progress, rate, last=step + 1 == self.steps_per_epoch)
                    if watch is not None:
                        watch(self.progress, done + 1, total, self.progress.seen / self.progress.epoch_seconds)
                    if stops:
                        self._stop(stop)
                    if now - saved > SAVE_EVERY_SECONDS:
                        self._save()
                        saved = now

                self._save()  # a kill during the validation must cost no step
                if metrics is not None:
                    self._finish_epoch(metrics, board)
                else:
                    self.progress = Progress(epoch=epoch + 1)
                self._save()
        return world.from_leader(self._write_weights)

    def _step(
        self, images: Tensor, labels: Tensor, target: Tensor | None, rate: float, random: torch.Generator
    ) -> tuple[float, int]:
        """This process's part of a step: the mean loss of its images, and how many of them were right."""
        config, device = self.config, self.world.device
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        labels = labels.to(device)
        self.optimizer.zero_grad(set_to_none=True)
        extra = self._photographs(random) if self.photographs else None
        with mixed(config.precision, device):
            seen = (images.to(device),) if extra is None else (images.to(device), extra[0])
            logits, others = self.parallel(*seen).float().split([len(images), len(seen[-1]) * (extra is not None)])
        if self.weights is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        else:
            each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=config.label_smoothing)
            loss = (each * self.weights[labels]).mean()
        if target is not None:
            weight, temperature = config.teacher_weight, config.teacher_temperature
            loss = distillation_loss(loss, logits, target.to(device), weight, temperature)
        # The mean over ranks of these is the gradient of the batch's mean, even if parts differ in size.
        share = len(images) * self.world.size / config.batch_size
        if self.photographs is None or extra is None:
            objective = loss * share
        else:
            _, targets, weights = extra
            more = -((targets * F.log_softmax(others, 1)).sum(1) * weights).sum() * self.world.size
            objective = (loss * share * config.batch_size + more) / (config.batch_size + self.photographs.weight)
        objective.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item(), int((logits.argmax(1) == labels).sum())

    def _photographs(self, random: torch.Generator) -> tuple[Tensor, ...]:
        """This process's part of the photographs of a step, their targets and weights."""
        assert self.photographs is not None
        part = self.world.part(self.config.photograph_batch)
        return tuple(tensor[part].to(self.world.device) for tensor in self.photographs(random))

    def _batches(self, view: int, world: World, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices and augmented images of this process's part of a view's batches, from number `first` on."""
        config = self.config
        order = torch.randperm(len(self.train.labels), generator=_generator(config.seed, view, 0))
        mirrored = augment.alternating_flips(len(order), view, config.seed)
        for step in range(first, self.steps_per_epoch):
            batch = order[step * config.batch_size : (step + 1) * config.batch_size]
            part = world.part(len(batch))
            random = augment.BatchRandom(_generator(config.seed, view, step + 1), len(batch), part)
            yield batch[part], self._augmented(batch[part], mirrored, random)

    def _augmented(self, batch: Tensor, mirrored: Tensor, random: augment.BatchRandom) -> Tensor:
        images = self.train.images[batch]
        if self.config.flip:
            images = augment.flip(images, mirrored[batch])
        images = augment.shift(images, self._pixels(self.config.shift), random)
        images = augment.zoom(images, self.config.zoom, random)
        images = augment.colour(images, self.config.colour, random)
        return augment.cutout(images, self._pixels(self.config.cutout), random)

    def _pixels(self, thirty_seconds: int) -> int:
        """A length in 32nds of the side, in pixels."""
        return thirty_seconds * self.config.input_size // 32

    def _teacher_logits(self, answered: Callable[[int], None] = lambda _: None) -> Tensor | None:
        if not self.teachers:
            return None
        needed = range(min(self.config.views, self.config.epochs))
        views = ((images for _, images in self._batches(view, World())) for view in needed)
        return teacher_logits(self.folder, self.teachers, views, answered)

    def _part_of_batch(self, rows: Tensor, step: int) -> Tensor:
        """This process's rows of those of all images of a view, in the order of its batches."""
        size = self.config.batch_size
        return rows[step * size : (step + 1) * size][self.world.part(size)]

    @torch.no_grad()
    def _average(self, update: int) -> None:
        """Exponential moving average of weights and running statistics; its first updates count for more."""
        decay = min(self.config.ema_decay, (1 + update) / (10 + update))
        for name, value in self.model.network.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - decay)
            else:
                self.averaged[name].copy_(value)

    def _finish_epoch(self, metrics: Metrics, board: Board | None) -> None:
        now, config = self.progress, self.config
        cpu_clock = time.process_time()
        logits, labels = self._validate(), self.select.labels.to(self.world.device)
        loss = F.cross_entropy(logits, labels).item()
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        cpu_seconds = now.cpu_seconds + time.process_time() - cpu_clock
        last, steps = (now.epoch + 1) * self.steps_per_epoch - 1, self.total_steps
        row = Epoch(
            epoch=now.epoch + 1,
            lr=learning_rate(last, steps=steps, peak=config.lr, warmup=config.warmup),
            train_loss=now.loss_sum / now.seen,
            train_accuracy=now.correct / now.seen,
            validation_loss=loss,
            validation_accuracy=accuracy,
            seconds=round(now.epoch_seconds, 1),
        )
        history = [*now.history, row.model_dump()]
        self.progress = Progress(epoch=now.epoch + 1, cpu_seconds=cpu_seconds, history=history)
        write_atomically(self.folder / HISTORY, history_csv(history).encode())
        metrics.validated(self.steps_done, row.epoch, loss, accuracy)
        if board is not None:
            board.mistakes(self.steps_done, self.select, logits)

    def _validate(self) -> Tensor:
        """The averaged weights' logits of the selection split, float32 [N, classes]."""
        network = self.model.network
        live = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self.averaged)
        logits = predict_logits(self.model, self.select.images.to(self.world.device))
        network.load_state_dict(live)
        return logits

    def _save(self) -> None:
        if self.world.leads:
            save_checkpoint(self.folder / STATE, self.model.network, self.averaged, self.optimizer, self.progress)

    def _stop(self, stop: StopRequest) -> NoReturn:
        self.world.from_leader(self._save)  # the others wait, for torchrun ends all processes after the first
        if not self.world.leads:
            raise LeaderFailed("rank 0 has stopped")
        raise Stopped(stop.number or signal.SIGTERM, f"step {self.steps_done:,} of {self.total_steps:,}")

    def _write_weights(self) -> Path:
        weights = self.folder / WEIGHTS
        write_atomically(weights, save_safetensors(contiguous(self.averaged)))
        return weights

    def _diverged(self, loss: float, rate: float) -> TrainingError:
        return TrainingError(
            f"the loss became {loss} in epoch {self.progress.epoch + 1}, step {self.progress.step + 1}, "
            f"at a learning rate of {rate:.2g}: try a lower --lr in another --run-dir "
            f"(the last sound state stays in {self.folder})"
        )


def _check(config: Config, images: int, processes: int, taught: bool, photographed: bool) -> None:
    """Raises TrainingError when `config` does not fit the number of images and processes."""
    steps = config.epochs * (images // config.batch_size)
    if config.batch_size > images:
        raise TrainingError(f"--batch-size is {config.batch_size}: it must be at most {images}, the training images")
    if config.batch_size < 2 * processes:
        raise TrainingError(
            f"--batch-size is {config.batch_size}: for {processes} processes it must be at least {2 * processes}, "
            f"for batch norms need two images each"
        )
    if config.ema_every > steps:
        raise TrainingError(
            f"--ema-every is {config.ema_every}: it must be at most {steps}, the steps of the run, "
            f"or weights are never averaged"
        )
    if config.photograph_batch and not photographed:
        raise TrainingError(f"--photograph-batch is {config.photograph_batch}: without --photographs it must be 0")
    if taught and not config.views:
        raise TrainingError("--views is 0: with a teacher it must be at least 1, for it answers each view once")


def _optimizer(network: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); filters decay, norms and biases do not."""
    filters = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": filters, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def _generator(seed: int, epoch: int, step: int) -> torch.Generator:
    # Distinct for every epoch below a thousand and step below a million.
    return torch.Generator().manual_seed((seed * 1_000 + epoch) * 1_000_000 + step)


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Averages that decay towards zero become denormal numbers, which CPUs add a hundred times slower."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
