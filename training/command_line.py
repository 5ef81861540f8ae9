"""The training command line, `python -m training`.

python -m training all                           # fit, evaluate, export: runs/mobilenet_v2_cifar10/bundle
python -m training fit --epochs 7 --run-dir runs/seven
torchrun --standalone --nproc-per-node 2 -m training fit   # in two processes, or on two GPUs
python -m training evaluate --run-dir runs/seven
python -m training export --run-dir runs/seven --bundle models/mobilenet_v2_cifar10 --force
python -m training all --data FOLDER             # the same for your own classes: a folder a class
python -m training photographs FOLDER            # pictures for `all --photographs FOLDER --photograph-batch 40`
python -m training show RUN                      # where a run stands, and its curve
python -m training quantise RUN --run-dir OUT    # a run with 8-bit integers, to evaluate and export
python -m training compare OLD NEW               # two runs or bundles: better, or chance?
python -m training labels RUN --labels FOLDER    # its accuracy by the labels of other people
python -m training leave-two-out                 # which score detects unknown classes
python -m training card BUNDLE                   # render a bundle's model card again
python -m training publish RUN OWNER/NAME        # write its bundle to the Hugging Face Hub

A command that was stopped resumes when it is given again.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from app.bundle.manifest import Manifest
from training.chosen_data import (
    DATA_DIR,
    RUN_DIR,
    TEST_READS,
    check_options,
    open_data,
    own_config,
    photographs_to_train,
    reads_log,
    run_folder,
)
from training.config import Config
from training.data.archive import fetch
from training.data.cifar10 import Dataset
from training.data.data_set import DataSet
from training.data.tiny_imagenet import ARCHIVE as TINY_IMAGENET
from training.data.tiny_imagenet import sort_pictures
from training.errors import TrainingError
from training.evaluate import leave_two_out
from training.evaluate.compare import compare, predict, read_model
from training.evaluate.evaluate import Sources, evaluate, evaluated
from training.evaluate.human_labels import LABELS, figures, read_human_labels, render_figures
from training.evaluate.test_set_log import check_log
from training.exit_codes import run_command_line
from training.export.bundle import bundle_name, check_target, export, render_card_again
from training.export.publish import publish
from training.export.quantised_run import check_folder, quantise, read_source
from training.fit.banner import begins, tell, tell_images
from training.fit.distributed import Device, join, processes
from training.fit.overview import draw, read_overview, render
from training.fit.progress_bar import progress_on
from training.fit.run import Run
from training.fit.run_folder import BUNDLE, TENSORBOARD, FinishedRun, check_cifar10, split_seed
from training.fit.teachers import read_teacher
from training.fit.tensorboard import TensorBoard, check_tensorboard
from training.options import (
    Board,
    BundleDir,
    ComputeOn,
    DataDir,
    Download,
    Fashion,
    Force,
    Init,
    Near,
    Own,
    People,
    Photos,
    RunDir,
    Teacher,
    TestReads,
    Threads,
    default_threads,
    given,
    with_config,
)
from training.plural import plural
from training.provenance import describe, environment

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

PROGRAM = "python -m training"


# Without the \\b, Typer would join the command lines.
@cli.callback(invoke_without_command=True, help=__doc__.replace("\n\n", "\n\n\b\n", 1))
def bare(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
    elif context.invoked_subcommand != "fit" and processes() > 1:
        raise TrainingError(f"{context.invoked_subcommand} runs in one process: torchrun is for fit")


@cli.command("fit")
@with_config
def fit_command(
    context: typer.Context,
    *,
    config: Config,
    data: Own = None,
    data_dir: DataDir = DATA_DIR,
    download: Download = True,
    run_dir: RunDir = RUN_DIR,
    init: Init = "imagenet",
    teacher: Teacher = None,
    threads: Threads = default_threads(),
    device: ComputeOn = "auto",
    tensorboard: Board = False,
    photographs: Photos = None,
) -> None:
    """Train, or resume a run that was stopped."""
    torch.set_num_threads(threads)
    run_dir = run_folder(run_dir, data)
    check_options(data, config, teacher=teacher, photographs=photographs)
    if photographs is not None and not config.photograph_batch:
        raise TrainingError("--photographs needs --photograph-batch, the number of them in a step, for example 40")
    dataset = open_data(data, data_dir, config, download=download)
    _fit(config, given(context), dataset, run_dir, init, teacher or [], device, tensorboard, photographs)


def _fit(
    config: Config,
    given: set[str],
    dataset: DataSet,
    run_dir: Path,
    init: str,
    teachers: list[Path],
    device: Device,
    tensorboard: bool,
    photographs: Path | None,
) -> None:
    console = Console(stderr=True)
    if tensorboard:
        check_tensorboard()
    with join(device) as world, ExitStack() as stack:
        console.quiet = not world.leads
        tell(console, "run", str(run_dir))
        tell(console, "device", describe(environment(world.size, world.device)["hardware"]))
        images, parts, graphs, photos, warning = world.from_leader(
            lambda: (
                dataset.training,
                dataset.split(config.split_seed),
                [read_teacher(folder, config.split_seed) for folder in teachers],
                photographs_to_train(config, dataset, photographs),
                dataset.warning,
            )
        )
        train, select = (images.take(part) for part in (parts.train, parts.select))
        of = dataset.description
        if not of.is_cifar10:
            config = own_config(config, given, len(train.labels), others=photos is not None)
        tell_images(console, dataset.folder, config, of, train, select, warning)
        if photos is not None:
            where = f"from {photographs}" if of.is_cifar10 else "of other things"
            tell(console, "photographs", f"{len(photos.labels):,}, {where}")
        run = Run(run_dir, config, init, train, select, graphs, world, photos, of)
        tell(console, "network", f"{bundle_name(config.architecture, of)}, from {init}")
        tell(console, "start", begins(run))
        progress = progress_on(console, min(config.views, config.epochs))
        stack.enter_context(progress)
        board = TensorBoard(run_dir / TENSORBOARD, run.steps_done, of.classes) if tensorboard and world.leads else None
        if board is not None:
            stack.enter_context(board)
        weights = run.fit(progress if world.leads else None, progress.answered, board)
    if world.leads:
        last = run.progress.history[-1]
        epochs = plural(last["epoch"], "epoch")
        print(f"{weights}: validation accuracy {last['validation_accuracy']:.2%} after {epochs}")


@cli.command("evaluate")
def evaluate_command(
    *,
    data: Own = None,
    data_dir: DataDir = DATA_DIR,
    download: Download = True,
    run_dir: RunDir = RUN_DIR,
    threads: Threads = default_threads(),
    test_reads: TestReads = TEST_READS,
    near: Near = leave_two_out.RESULT,
    fashion_mnist: Fashion = None,
    photographs: Photos = None,
    labels: People = None,
) -> None:
    """Compute a finished run's logits and its report on the test set."""
    torch.set_num_threads(threads)
    run_dir = run_folder(run_dir, data)
    test_reads = reads_log(test_reads, data, run_dir)
    config = FinishedRun.read(run_dir).config
    check_options(data, config, fashion_mnist=fashion_mnist, photographs=photographs, labels=labels)
    dataset = open_data(data, data_dir, config, download=download)
    _evaluate(dataset, run_dir, test_reads, Sources(near if data is None else None, fashion_mnist, photographs, labels))


def _evaluate(dataset: DataSet, run_dir: Path, test_reads: Path, sources: Sources) -> None:
    run = FinishedRun.read(run_dir)
    with Console(stderr=True).status("computing logits"):
        report = evaluate(run, dataset, test_reads, sources)
    low, high = report.accuracy.ci95
    print(f"{run_dir}: test accuracy {report.accuracy.value:.2%} (95 % interval {low:.2%} to {high:.2%})")


@cli.command("export")
def export_command(
    *,
    data: Own = None,
    data_dir: DataDir = DATA_DIR,
    download: Download = True,
    run_dir: RunDir = RUN_DIR,
    threads: Threads = default_threads(),
    bundle: BundleDir = None,
    force: Force = False,
) -> None:
    """Write the bundle of a run that was evaluated."""
    torch.set_num_threads(threads)
    run_dir = run_folder(run_dir, data)
    dataset = open_data(data, data_dir, FinishedRun.read(run_dir).config, download=download)
    _export(dataset, run_dir, bundle or run_dir / BUNDLE, force)


def _export(dataset: DataSet, run_dir: Path, bundle: Path, force: bool) -> None:
    run = FinishedRun.read(run_dir)
    with Console(stderr=True).status("writing the bundle"):
        manifest = export(run, dataset, bundle, force=force)
    _print_bundle(bundle, manifest)


@cli.command("all")
@with_config
def all_command(
    context: typer.Context,
    *,
    config: Config,
    data: Own = None,
    data_dir: DataDir = DATA_DIR,
    download: Download = True,
    run_dir: RunDir = RUN_DIR,
    init: Init = "imagenet",
    teacher: Teacher = None,
    threads: Threads = default_threads(),
    device: ComputeOn = "auto",
    tensorboard: Board = False,
    test_reads: TestReads = TEST_READS,
    bundle: BundleDir = None,
    force: Force = False,
    near: Near = leave_two_out.RESULT,
    fashion_mnist: Fashion = None,
    photographs: Photos = None,
) -> None:
    """Fit, evaluate, export. Whatever can be refused is refused before the training."""
    torch.set_num_threads(threads)
    run_dir = run_folder(run_dir, data)
    test_reads = reads_log(test_reads, data, run_dir)
    bundle = bundle or run_dir / BUNDLE
    check_options(data, config, teacher=teacher, fashion_mnist=fashion_mnist, photographs=photographs)
    check_target(bundle, force=force)
    dataset = open_data(data, data_dir, config, download=download)
    check_log(test_reads)
    sources = Sources(near if data is None else None, fashion_mnist, photographs)
    sources.check()
    _fit(config, given(context), dataset, run_dir, init, teacher or [], device, tensorboard, photographs)
    _evaluate(dataset, run_dir, test_reads, sources)
    _export(dataset, run_dir, bundle, force)


@cli.command("quantise")
def quantise_command(
    *,
    source: Annotated[Path, typer.Argument(help="A bundle, or the folder of a finished run.")],
    run_dir: Annotated[Path, typer.Option(help="The folder that becomes a finished run.")],
    data: Own = None,
    data_dir: DataDir = DATA_DIR,
    download: Download = True,
    threads: Threads = default_threads(),
) -> None:
    """Make a run whose graph computes with 8-bit integers; `evaluate` and `export` then take it."""
    torch.set_num_threads(threads)
    check_folder(run_dir)
    network = read_source(source)
    dataset = open_data(data, data_dir, network.run.config, download=download)
    made = quantise(network, dataset, run_dir).quantisation
    assert made is not None
    print(
        f"{run_dir}: {made.source} with {made.weight_bits}-bit integers, by {made.calibration_images} training images"
    )


@cli.command("show")
def show_command(*, run: Annotated[Path, typer.Argument(help="The folder of a run, finished or not.")]) -> None:
    """Print what a run is, where it stands and its curve, which is drawn into its folder, too."""
    overview, console = read_overview(run), Console(highlight=False, markup=False)
    for part in render(overview):
        console.print(part)
    if overview.history:
        print(f"drawn: {draw(overview)}")


@cli.command("photographs")
def photographs_command(
    *,
    folder: Annotated[Path, typer.Argument(help="The folder that gets the pictures, for --photographs.")],
    downloads: Annotated[Path, typer.Option(help="The folder of tiny-imagenet-200.zip.")] = DATA_DIR,
) -> None:
    """Fetch Tiny-ImageNet's pictures of seven of the classes and of other things: they are for research only."""
    count = sort_pictures(fetch(TINY_IMAGENET, downloads), folder)
    print(f"{folder}: {count:,} pictures; there are none of airplane, deer and horse")


@cli.command("compare")
def compare_command(
    *,
    old: Annotated[Path, typer.Argument(help="A bundle or the folder of a finished run.")],
    new: Annotated[Path, typer.Argument(help="Another.")],
    data_dir: DataDir = DATA_DIR,
    download: Download = True,
    threads: Threads = default_threads(),
) -> None:
    """Tell whether NEW is better than OLD, on 5,000 held-out images; exit code 1 if not. Not for own classes."""
    torch.set_num_threads(threads)
    seed = split_seed(old) or Config().split_seed
    models = [read_model(source, seed) for source in (old, new)]  # refuses either before it computes for minutes
    dataset = Dataset(data_dir, download=download)
    held_out = dataset.training.take(dataset.split(seed).held_out)
    found = compare(*(predict(model, held_out) for model in models))
    print(found.render(old, new))
    raise typer.Exit(0 if found.better else 1)


@cli.command("labels")
def labels_command(
    *,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs that were evaluated.")],
    labels: Annotated[Path, typer.Option(help="The folder of CIFAR-10H's, ciFAIR's and cleanlab's files.")] = LABELS,
    download: Annotated[bool, typer.Option(help="Fetch those that are missing.")] = True,
) -> None:
    """Compare saved predictions for the test images with the labels of other people, and leave out near-duplicates."""
    for run in runs:
        check_cifar10("the run", run)
    tests = [evaluated(FinishedRun.read(run))[0].test for run in runs]
    people = [read_human_labels(labels, test.labels.numpy(), download=download) for test in tests]
    for run, test, human in zip(runs, tests, people, strict=True):
        print(f"{run}: accuracy, its 95 % interval, the accuracy of CIFAR-10's own labels")
        print(render_figures(figures(test.predicted(), test.labels.numpy(), human)))


@cli.command("leave-two-out")
def leave_two_out_command(
    *,
    data_dir: DataDir = DATA_DIR,
    download: Download = True,
    run_dir: RunDir = leave_two_out.RUNS,
    init: Init = "imagenet",
    threads: Threads = default_threads(),
    near: Near = leave_two_out.RESULT,
) -> None:
    """Train five networks, each without two classes, and compare the scores that should detect images of those."""
    torch.set_num_threads(threads)
    config, dataset = leave_two_out.CONFIG, Dataset(data_dir, download=download)
    parts = dataset.split(config.split_seed)
    with progress_on(Console(stderr=True)) as watch:
        folds = leave_two_out.leave_two_out(run_dir, config, init, dataset.training, parts, watch)
        areas = leave_two_out.compare_methods(folds)
    leave_two_out.write_near(near, config, areas)
    print(leave_two_out.render(areas))


@cli.command("card")
def card_command(*, bundle: Annotated[Path, typer.Argument(help="The folder of a bundle.")]) -> None:
    """Render the model card of a bundle again from its manifest and report; no other file of it changes."""
    _print_bundle(bundle, render_card_again(bundle))


@cli.command("publish")
def publish_command(
    *,
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A bundle, or a run that was exported.")],
    repository: Annotated[str, typer.Argument(help="Its owner and name, with a slash; made if need be.")],
    private: Annotated[bool, typer.Option(help="Make it private, if it is made.")] = False,
) -> None:
    """Write a bundle to a repository of the Hugging Face Hub: the card, the weights, the graph and all other files."""
    done = publish(source, repository, private=private)
    _print_bundle(done.page, done.manifest)
    print(f"MODEL_DIR={done.address}")


def _print_bundle(bundle: Path | str, manifest: Manifest) -> None:
    print(f"{bundle}: {manifest.name} {manifest.version}, digest {manifest.digest}")


def main() -> None:
    run_command_line(cli, PROGRAM)
