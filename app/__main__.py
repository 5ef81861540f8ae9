"""The service's command line: `cifar10-classifier` where the package is installed, `python -m app` in a clone.

python -m app serve                      # what a bare `python -m app` does too
python -m app classify photos cat.png    # no server
python -m app classify --ray --output answers s3://bucket/photos    # on all cores of a cluster
"""

import asyncio
import errno
import io
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from . import __version__
from . import local_files as files
from .api.summed_metrics import merged
from .bundle.reader import Bundle, BundleError
from .errors import Problem
from .imaging.pool import Pool
from .inference.classifier import limits_of
from .inference.drift import ring_bytes
from .inference.engine import ThreadsError
from .inference.preloaded import Preloaded
from .inference.repository import Loaded
from .inference.sessions import Session, SessionError, load_session
from .main import create_app, refusal
from .process.connection_limit import DescriptorsError, require_descriptors
from .process.listener import BindError, bound
from .process.logging import configure_logging
from .process.runtime import SeveralProcesses, give_memory_back, refuse_several_processes
from .process.server import Server
from .settings import DEFAULT_MODEL, Settings, SettingsError
from .settings.command_help import ServeCommand
from .telemetry import TelemetryError, with_instance
from .workers.board import Board
from .workers.supervisor import Supervisor, WorkersError
from .workers.worker import Worker

cli = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # frames around errors help neither logs nor scripts
    help="Image classification: a service, and a command for files.",
)


STOP_MARGIN_SECONDS = 5.0  # for workers to end after GRACE_SECONDS and DRAIN_SECONDS
TOP_K = 3  # of classify; no error for a model with fewer classes

Model = Annotated[str | None, typer.Option(help="The bundle's folder or address, instead of MODEL_DIR.")]


class StartupError(Exception):
    """The command cannot start; the message is one line for the operator."""

    exit_code = 1


class UsageError(StartupError):
    """The arguments make no sense."""

    exit_code = 2


class OutputError(Exception):
    """Standard output cannot be written; `broken_pipe` if its reader has ended."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(f"standard output: {reason.strerror}")
        self.broken_pipe = isinstance(reason, BrokenPipeError)
        self.exit_code = 128 + signal.SIGPIPE if self.broken_pipe else 1  # what a shell says of a program like `cat`


@cli.callback(invoke_without_command=True)
def bare(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        _answer(f"cifar10-classifier {__version__}", flush=True)
        raise typer.Exit
    if context.invoked_subcommand is None:
        serve()


@cli.command(cls=ServeCommand)
def serve(
    host: Annotated[str | None, typer.Option(help="The address to serve at, instead of HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port, instead of PORT.")] = None,
    model: Model = None,
) -> None:
    """Serve the bundle over HTTP until SIGTERM. Every setting is an environment variable; these options override it."""
    try:
        refuse_several_processes()
        require_descriptors()
    except (SeveralProcesses, DescriptorsError) as error:
        raise StartupError(str(error)) from None
    give_memory_back()
    settings = _settings(host=host, port=port, model_dir=model)
    try:
        with bound(settings) as sockets:
            if settings.workers > 1:
                _serve_with_workers(settings, sockets)
            else:
                _serve(settings, sockets, {DEFAULT_MODEL: _load_session(settings)})
    except BindError as error:
        raise StartupError(str(error)) from None


def _serve_with_workers(settings: Settings, sockets: list[socket.socket]) -> None:
    def work(worker: Worker) -> int:
        os.environ["OTEL_RESOURCE_ATTRIBUTES"] = with_instance(os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
        own = settings.model_copy(update={"inference_threads": worker.share(settings.inference_threads)})
        try:
            _serve(own, sockets, models.give(), worker)
        except (StartupError, BindError) as error:
            worker.fail(str(error))
            return 1
        return 0

    board = Board(settings.workers, settings.folders, ring_bytes(settings.drift_window_images))
    stop_seconds = settings.grace_seconds + settings.drain_seconds + STOP_MARGIN_SECONDS
    try:
        models = Preloaded(settings, settings.workers + 1)
        pool = Pool(settings.inference_threads, limits_of(settings))
        with _ended_in_order():
            Supervisor(board, models, work, merge=merged, stop_seconds=stop_seconds, pool=pool).run(sockets)
    except (BundleError, SessionError, WorkersError) as error:
        raise StartupError(str(error)) from None


def _serve(settings: Settings, sockets: list[socket.socket], loaded: Loaded, worker: Worker | None = None) -> None:
    """`loaded` is emptied: a model that is replaced is freed."""
    configure_logging(settings.log_level, settings.log_format)
    try:
        app = create_app(settings, loaded, worker=worker)
    except (TelemetryError, SettingsError) as error:
        raise StartupError(str(error)) from None
    server = Server(app, settings, worker)
    try:
        with _ended_in_order():
            server.run(sockets)
    except ThreadsError as error:
        raise StartupError(f"INFERENCE_THREADS: {error}") from None
    except SettingsError as error:  # FEEDBACK_DIR's or GRPC_PORT's
        raise StartupError(str(error)) from None
    except (BundleError, SessionError) as error:  # of MODEL_DIRS
        raise StartupError(str(error)) from None
    service = getattr(app.state, "service", None)
    if service is None or service.repository.died:
        sys.exit(1)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """A signal ends what is inside, which obeys it in its own way; a further one does not change the exit code.

    uvicorn shuts down in order and then raises the signal again, which would end the process as if it had not.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # the interpreter's end would restore any other handler's default


@cli.command()
def classify(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Files, folders (and theirs), globs; - for standard input.")
    ],
    top_k: Annotated[int, typer.Option(help="How many classes to name.")] = TOP_K,
    json: Annotated[bool, typer.Option("--json", help="A JSON object a line instead of a table.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="On Ray, here or at RAY_ADDRESS; a PATH may be a URL.")] = False,
    output: Annotated[str | None, typer.Option(help="With --ray: the folder or URL for Parquet files.")] = None,
    model: Model = None,
) -> None:
    """Say what images on this machine show, without a server; settings are those of the service.

    In the table a `?` before the classes says that the image is unlike those that the model knows.
    With --ray, answers go to Parquet files, and the same command goes on where one before it was ended.

    Exit status: 0, 1 when a file failed or the answers cannot be written, 2 when there is nothing to do or an option
    makes no sense, 141 when the program that reads the answers has ended.
    """
    if not isinstance(sys.stdout, io.TextIOWrapper):
        raise OutputError(OSError(0, "it is closed"))
    sys.stdout.reconfigure(errors="backslashreplace")  # its encoding may lack characters of a path
    if ray != (output is not None) or (ray and json):
        raise UsageError("--ray and --output go together, and without --json")
    if output is not None:
        failed, total = _classify_on_ray(paths, output, model, top_k)
    else:
        failed, total = _classify_here(paths, model, top_k, json)
    if failed:
        _complain(f"{failed} of {total} files failed\n")
        sys.exit(1)


def _classify_here(patterns: Sequence[str], model: str | None, top_k: int, json: bool) -> tuple[int, int]:
    """Returns how many files failed, and of how many."""
    skipped: list[files.Skipped] = []
    named = [pattern for pattern in patterns if pattern != files.STANDARD_INPUT]
    try:
        found: list[Path | str] = [*files.find(named, skipped)]
    except files.FilesError as error:
        raise UsageError(str(error)) from None
    if len(named) < len(patterns):
        found.append(files.STANDARD_INPUT)
    settings, loaded = _load(model)
    _check(top_k, loaded[0])
    try:
        failed = asyncio.run(_print_results(found, settings, loaded, top_k, json))
    except Problem as problem:
        raise StartupError(problem.detail) from None
    if skipped:
        _complain(files.about_skipped(skipped) + "\n")
    return failed, len(found)


def _classify_on_ray(patterns: Sequence[str], output: str, model: str | None, top_k: int) -> tuple[int, int]:
    """Returns how many files failed, now or before, and of how many."""
    try:
        from .cluster import files as bulk
    except ImportError as error:
        raise StartupError(f"--ray needs the extra 'ray' ({error})") from None
    settings, (bundle, _) = _load(model)
    _check(top_k, bundle)
    manifest = bundle.manifest
    try:
        found = bulk.find(patterns)
        parts = bulk.Output(output, bulk.RunOptions(manifest.version, manifest.digest, top_k, settings.views))
        before = parts.done(found)
        parts.make()
    except files.FilesError as error:
        raise UsageError(str(error)) from None
    done, failed = len(before), list(before.values()).count(False)
    progress = _on_terminal()
    try:
        for part in bulk.classify([path for path in found if path not in before], parts, settings):
            done, failed = done + part.files, failed + part.failed
            if progress:
                _complain(f"\r\x1b[K{done} of {len(found)} files")
    except bulk.ClusterError as error:
        raise StartupError(str(error)) from None
    finally:
        if progress:
            _complain("\r\x1b[K")
    _answer(f"{done - len(before)} files answered, {len(before)} were before; in {output}", flush=True)
    return failed, len(found)


def _check(top_k: int, bundle: Bundle) -> None:
    classes = len(bundle.manifest.classes)
    if not 1 <= top_k <= max(TOP_K, classes):
        raise UsageError(f"--top-k: it must be from 1 to {classes} (given: {top_k})")


async def _print_results(
    paths: Sequence[Path | str], settings: Settings, loaded: tuple[Bundle, Session], top_k: int, json: bool
) -> int:
    """Print each result as it comes, and to a terminal how many there are to come. Returns how many files failed."""
    width = max(len(files.shown(path)) for path in paths)
    progress = _on_terminal()
    done = failed = 0
    async with aclosing(files.classify(paths, settings, loaded, top_k)) as results:
        async for result in results:
            done += 1
            failed += result.fault is not None
            if progress:
                _complain("\r\x1b[K")
            last = done == len(paths)
            _answer(files.as_json(result) if json else files.as_row(result, width), flush=progress or last)
            if progress and not last:
                _complain(f"{done} of {len(paths)} files")
    return failed


def _answer(line: str, *, flush: bool) -> None:
    """Print it. Raises OutputError."""
    try:
        print(line, flush=flush)
    except OSError as error:
        raise OutputError(error) from None


def _complain(text: str) -> None:
    """Write it to standard error, if there is one that takes it: nothing else could be told about its failure."""
    try:
        if sys.stderr is not None:
            print(text, end="", file=sys.stderr, flush=True)
    except OSError:
        _discard(2)


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _discard(descriptor: int) -> None:
    """Lead a stream nowhere: Python writes what is left of it at its end, and would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _load(model: str | None) -> tuple[Settings, tuple[Bundle, Session]]:
    settings = _settings(model_dir=model)
    return settings, _load_session(settings)


def _settings(**options: object) -> Settings:
    """The environment's settings, overridden by the options that were given."""
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except (ValidationError, SettingsError) as error:
        raise StartupError(refusal(error)) from None


def _load_session(settings: Settings) -> tuple[Bundle, Session]:
    try:
        return load_session(settings)
    except (BundleError, SessionError) as error:
        raise StartupError(str(error)) from None


def main() -> None:
    try:
        cli()
    except StartupError as error:
        _complain(f"error: {' '.join(str(error).split())}\n")  # one line, whatever a file's name holds
        sys.exit(error.exit_code)
    except (OutputError, OSError) as error:
        if isinstance(error, OSError):
            if error.errno != errno.ENOSPC:
                raise
            error = OutputError(error)  # of --help, which typer prints
        _discard(1)
        if not error.broken_pipe:
            _complain(f"error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
