"""The loop: any number of networks learn from the same views, for a number of seconds, on one device.

Every random number is a function of (seed, step). The number of steps depends on the device, so a run cannot be
repeated exactly. Teachers see the very view that their students see (Beyer et al. 2022, arXiv:2106.05237).
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from app.bundle.report import Epoch
from training.data.cifar10 import LabelledImages
from training.data.random_views import PHOTOGRAPHS, THUMBNAILS, cutmix, mixup, random_views
from training.errors import TrainingError
from training.fit.photographs import PhotographSampler, photograph_targets
from training.fit.stop import Stopped, StopRequest
from training.gpu.learners import Learner, Resized
from training.gpu.state import Place, State

CLASSES = 10
CHECK_EVERY = 50  # steps between looks at the loss, each of which waits for the device
SAVE_EVERY_SECONDS = 60.0


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, beside the data and the time."""

    seconds: float
    lr: float
    thumbnails: int  # in a batch
    known: int  # photographs of the ten classes in a batch
    other: int  # photographs of other things in a batch
    mixed: float  # share of the batches whose thumbnails are mixed, half by mixup, half by cutmix
    shrunk: int = 0  # photographs in a batch that enter as thumbnails; a third, of other things, with full weight
    stand_ins: int = 0  # thumbnails in a batch that enter as photographs as well, each in a mirrored frame
    teacher_weight: float = 0.9
    temperature: float = 2.0
    warmup: float = 0.05
    weight_decay: float = 0.05
    ema_decay: float = 0.998
    label_smoothing: float = 0.05  # of photographs' labels
    other_weight: float = 0.5  # of photographs of other things in the loss
    seed: int = 0


@dataclass(frozen=True)
class Data:
    """Everything on the device: thumbnails uint8 [N, 32, 32, 3], photographs uint8 [M, 64, 64, 3]."""

    train: LabelledImages
    select: LabelledImages
    photographs: LabelledImages  # labels are 0..9 or OTHER

    def to(self, device: torch.device) -> "Data":
        return Data(
            *(LabelledImages(*(one.to(device) for one in part)) for part in (self.train, self.select, self.photographs))
        )


@dataclass
class Teachers:
    """Networks whose logits are averaged; `first` alone answers for photographs, for the others never saw any."""

    first: Resized
    others: Sequence[Resized] = ()
    share: float = 0.0  # of the others in the mean, for thumbnails

    @torch.no_grad()
    def __call__(self, thumbnails: Tensor, photographs: Tensor) -> Tensor:
        logits: Tensor = self.first(thumbnails, photographs)
        if self.others and self.share:
            mean = torch.stack([other(thumbnails) for other in self.others]).mean(0)
            logits[: len(thumbnails)] = torch.lerp(logits[: len(thumbnails)], mean, self.share)
        return logits


@dataclass
class Outcome:
    """What a run of the loop leaves beside the learners' weights."""

    passes: float = 0.0  # over the thumbnails
    steps: int = 0
    seconds: float = 0.0
    history: dict[str, list[Epoch]] = field(default_factory=dict)  # by learner


def train(
    learners: Sequence[Learner],
    data: Data,
    recipe: Recipe,
    state: State,
    teachers: Teachers | None = None,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Train all learners for `recipe.seconds`, or go on from `state`, which is saved every minute.

    Raises TrainingError when a loss is not finite, and Stopped after Ctrl-C or SIGTERM, which save `state`, too.
    """
    device, batches, place = data.train.labels.device, _Batches(data, recipe), state.restore(learners)
    if place.step:
        say(f"{place.elapsed:6.1f} s  step {place.step:5}  goes on from here")
    sums = torch.tensor(place.sums, device=device)
    begun, saved = clock() - place.elapsed, place.elapsed
    count = recipe.thumbnails
    per_epoch = max(1, len(data.train.labels) // count)
    with StopRequest() as stop:
        while place.elapsed < recipe.seconds:
            step, rate = place.step, recipe.lr * _share_of_peak(place.elapsed / recipe.seconds, recipe.warmup)
            thumbnails, photographs, targets, weights, plain = batches(step)
            answers = teachers(thumbnails, photographs) if teachers else None
            for row, learner in zip(sums, learners, strict=True):
                logits = learner.model(thumbnails, photographs)
                losses = _losses(logits, targets, answers, recipe)
                loss = (losses * weights).sum() / weights.sum()
                learner.learn(loss, rate)
                learner.average(min(recipe.ema_decay, (1 + step) / (10 + step)))
                right = (logits[:count].argmax(1) == targets[:count].argmax(1)).sum()
                row += torch.stack([loss.detach(), (right * plain).float()])
            place.step, place.plainly_seen = step + 1, place.plainly_seen + count * plain
            place.elapsed = clock() - begun
            ends = place.step % per_epoch == 0 or place.elapsed >= recipe.seconds
            saves = bool(stop.number) or place.elapsed - saved >= SAVE_EVERY_SECONDS
            if (ends or saves or place.step % CHECK_EVERY == 0) and not bool(sums.isfinite().all()):
                raise TrainingError(f"a loss is not finite at step {place.step}, at a learning rate of {rate:.2g}")
            if ends:
                _finish_epoch(learners, data, recipe, place, sums.tolist(), rate, say)
                sums.zero_()
                place.plainly_seen, place.epoch_begun = 0, clock() - begun
            if saves:
                place.sums, saved = sums.tolist(), place.elapsed
                state.save(learners, place)
            if stop.number:
                raise Stopped(stop.number, f"{place.elapsed:.0f} of {recipe.seconds:.0f} seconds of training")
    passes = place.step * recipe.thumbnails / len(data.train.labels)
    return Outcome(passes, place.step, round(clock() - begun, 1), place.history)


def _finish_epoch(
    learners: Sequence[Learner],
    data: Data,
    recipe: Recipe,
    place: Place,
    sums: list[list[float]],
    rate: float,
    say: Callable[[str], None],
) -> None:
    """Validate the learners, and add a row to the history of each."""
    per_epoch = max(1, len(data.train.labels) // recipe.thumbnails)
    since = place.step - len(place.history[learners[0].name]) * per_epoch
    seconds = place.elapsed - place.epoch_begun
    for (loss_sum, right), learner in zip(sums, learners, strict=True):
        loss, accuracy = validate(learner.averaged, data.select)
        epoch = Epoch(
            epoch=len(place.history[learner.name]) + 1,
            lr=rate,
            train_loss=loss_sum / max(1, since),
            train_accuracy=right / max(1, place.plainly_seen),
            validation_loss=loss,
            validation_accuracy=accuracy,
            seconds=round(seconds, 1),
        )
        place.history[learner.name].append(epoch)
        say(
            f"{place.elapsed:6.1f} s  step {place.step:5}  {learner.name:8} train {epoch.train_loss:.4f} "
            f"{epoch.train_accuracy:.4f}  held out {accuracy:.4f}  nll {loss:.4f}  "
            f"{since * recipe.thumbnails / max(1e-9, seconds):,.0f} thumbnails/s"
        )


def validate(model: Resized, images: LabelledImages) -> tuple[float, float]:
    """Mean negative log-likelihood and accuracy."""
    logits = answer(model, images)
    loss = F.cross_entropy(logits, images.labels).item()
    return loss, (logits.argmax(1) == images.labels).float().mean().item()


@torch.no_grad()
def answer(model: Resized, images: LabelledImages, size: int = 500) -> Tensor:
    """float32 logits [N, classes], in evaluation mode."""
    parts = torch.split(images.images, size)
    return torch.cat([model(part.permute(0, 3, 1, 2).float()) for part in parts])


def best_share(first: Resized, others: Sequence[Resized], images: LabelledImages) -> float:
    """The others' share in the mean of logits with the smallest negative log-likelihood, in steps of a tenth."""
    ours, theirs = answer(first, images), torch.stack([answer(one, images) for one in others]).mean(0)
    shares = [number / 10 for number in range(8)]
    return min(shares, key=lambda share: F.cross_entropy(torch.lerp(ours, theirs, share), images.labels).item())


class _Batches:
    """The views of a step, their targets and their weights in the loss; all functions of (seed, step)."""

    def __init__(self, data: Data, recipe: Recipe) -> None:
        self.data, self.recipe, self.device = data, recipe, data.train.labels.device
        self._sampler = PhotographSampler(data.photographs.labels)
        self._order = torch.empty(0, dtype=torch.int64, device=self.device)

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
        data, recipe = self.data, self.recipe
        generator = torch.Generator(self.device).manual_seed(recipe.seed * 10_000_000 + step)
        chosen = self._next(step)
        images, labels = data.train.images[chosen], data.train.labels[chosen]
        thumbnails, targets = random_views(images, THUMBNAILS, generator), F.one_hot(labels, CLASSES).float()
        if recipe.shrunk and len(data.photographs.labels):
            views, more, _ = self._photographs(recipe.shrunk - recipe.shrunk // 3, recipe.shrunk // 3, generator)
            thumbnails = torch.cat([thumbnails, F.interpolate(views, images.shape[1], mode="area").round()])
            targets = torch.cat([targets, more])
        choice = random.Random(recipe.seed * 10_000_000 + step).random()  # noqa: S311 (no secret)
        plain = choice >= recipe.mixed
        if not plain:
            mix = mixup if choice < recipe.mixed / 2 else cutmix
            thumbnails, targets = mix(thumbnails, targets, generator)
        photographs, more, weights = self._photographs(recipe.known, recipe.other, generator)
        if recipe.stand_ins:
            framed = _framed(images[: recipe.stand_ins], photographs.shape[-1])
            photographs = torch.cat([random_views(framed, PHOTOGRAPHS, generator), photographs])
            more = torch.cat([F.one_hot(labels[: recipe.stand_ins], CLASSES).float(), more])
        targets = torch.cat([targets, more])
        weights = torch.cat([torch.ones(len(targets) - len(weights), device=self.device), weights])
        return thumbnails, photographs, targets, weights, plain

    def _next(self, step: int) -> Tensor:
        count, size = len(self.data.train.labels), self.recipe.thumbnails
        per_epoch = count // size
        epoch, place = divmod(step, per_epoch)
        if place == 0 or not len(self._order):
            generator = torch.Generator(self.device).manual_seed(self.recipe.seed * 10_000_000 + 9_000_000 + epoch)
            self._order = torch.randperm(count, generator=generator, device=self.device)
        return self._order[place * size : (place + 1) * size]

    def _photographs(self, known: int, other: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Views float32 [N, 3, 64, 64], targets [N, classes] and weights [N]."""
        images, labels = self.data.photographs
        other = other if self._sampler.has_other else 0
        if not known + other or not len(labels):
            empty = torch.empty(0, CLASSES, device=self.device)
            return images[:0].permute(0, 3, 1, 2).float(), empty, empty[:, 0]
        chosen = self._sampler(known, other, generator)
        targets = photograph_targets(labels[chosen], self.recipe.label_smoothing)
        weights = torch.ones(known + other, device=self.device)
        weights[known:] = self.recipe.other_weight
        return random_views(images[chosen], PHOTOGRAPHS, generator), targets, weights


def _framed(images: Tensor, side: int) -> Tensor:
    """uint8 [N, side, side, 3]: each image [N, S, S, 3] in the centre, mirrored around it; `side` < 3 S."""
    edge = (side - images.shape[1]) // 2
    framed = F.pad(images.permute(0, 3, 1, 2).float(), (edge,) * 4, mode="reflect")
    return framed.permute(0, 2, 3, 1).to(torch.uint8)


def _losses(logits: Tensor, targets: Tensor, answers: Tensor | None, recipe: Recipe) -> Tensor:
    """float [N]: cross entropy with the targets, and divergence from the teachers' answers (arXiv:1503.02531)."""
    hard = -(targets * F.log_softmax(logits, 1)).sum(1)
    if answers is None:
        return hard
    ours, theirs = (F.log_softmax(one / recipe.temperature, 1) for one in (logits, answers))
    soft = (theirs.exp() * (theirs - ours)).sum(1) * recipe.temperature**2
    weight = recipe.teacher_weight
    return (1 - weight) * hard + weight * soft


def _share_of_peak(progress: float, warmup: float) -> float:
    """A linear rise, then half a cosine to zero, over the elapsed share of the time."""
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))
