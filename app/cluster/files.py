"""Classifies many images on Ray Data (extra `ray`), into Parquet: `classify --ray --output answers photos`.

    found = find(["photos", "s3://bucket/photos"])          # local paths, or URLs of any fsspec file system
    for part in classify(found, Output("answers", options), settings):
        print(part.files, part.failed)

The output is a folder of Parquet files, the parts. Each is written whole or not at all. A part holds up to PART_FILES
rows; a row holds the fields of the plain command's JSON line, and the model. Files in a finished part are skipped: the
same command resumes after a kill.

It runs on the cluster at RAY_ADDRESS, where every node must reach the files and the output, or else on this machine.
"""

import asyncio
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Switches off Ray's usage reports. Ray reads it when it is imported and when it starts.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray would warn on standard error about Ray Data

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import ray.exceptions
from fsspec.core import url_to_fs

from .. import local_files as files
from ..cores import available_cores
from ..errors import PayloadTooLarge
from ..imaging.formats import check_size
from ..inference.sessions import load_session
from ..local_files import SUFFIXES, FileResult, FilesError
from ..settings import Settings

PART_FILES = 256  # a kill loses one part at most for each worker; writing it costs little beside its images
PART_NAME = re.compile(r"part-\w+\.parquet")
MAX_BLOCKS = 1000  # groups of parts that Ray Data tracks
OBJECT_STORE_BYTES = 200 * 1024 * 1024  # names and counts pass through it, no images
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "predictions": pa.list_(
            pa.struct({"label": pa.string(), "class_id": pa.int32(), "probability": pa.float64()}.items())
        ),
        "prediction_set": pa.struct({"coverage": pa.float64(), "labels": pa.list_(pa.string())}.items()),
        "abstain": pa.bool_(),
        "ood_score": pa.float64(),
        "ood_threshold": pa.float64(),
        "views": pa.int32(),
        "measured_on": pa.string(),
        "error": pa.struct({"code": pa.string(), "detail": pa.string()}.items()),
        "model": pa.string(),
    }.items()
)


class ClusterError(Exception):
    """Ray cannot be reached, or a worker failed; the message is one line for the operator."""


@dataclass(frozen=True)
class RunOptions:
    """The options that answers depend on. All parts of an output have the same ones."""

    model: str  # the bundle's version
    digest: str  # the bundle's
    top_k: int
    views: int

    def __str__(self) -> str:
        return f"model {self.model} ({self.digest[:8]}), --top-k {self.top_k}, VIEWS {self.views}"


@dataclass(frozen=True)
class PartSummary:
    """The number of files in a part, and how many of them failed."""

    files: int
    failed: int


def find(patterns: Iterable[str]) -> list[str]:
    """The files that app.local_files.find finds, as absolute paths, and at URLs; each once. Raises FilesError."""
    found: dict[str, str] = {}
    for pattern in patterns:
        if "://" not in pattern:
            names = {files.entry(path): str(path.absolute()) for path in files.find([pattern])}
        elif (path := _local(pattern)) is not None:
            names = {files.entry(path): f"file://{path.absolute()}" for path in files.find([str(path)])}
        else:
            names = {name: name for name in _find_url(pattern)}
        for key, name in names.items():
            found.setdefault(key, name)
    return list(found.values())


def _local(url: str) -> Path | None:
    """The path of a file URL. It is searched as a path, since it may be a pipe, a device or a cycle of links."""
    scheme, _, path = url.partition("://")
    return Path(path) if scheme in ("file", "local") and "::" not in path else None


def _find_url(url: str) -> list[str]:
    pattern, *outer = url.split("::")  # zip://*.png::s3://bucket/photos.zip
    for archive in outer:
        local = _local(archive) if "://" in archive else Path(archive)
        if local is not None and local.exists() and not local.is_file():
            raise FilesError(f"{files.shown(archive)} is not a regular file")  # opening a pipe may never end
    with _reached(url):
        system, path = url_to_fs(url)
        if "*" in path:
            paths = system.glob(path)
        elif system.isdir(path):
            paths = [file for file in system.find(path) if Path(file).suffix.lower() in SUFFIXES]
        else:
            paths = [path] if system.exists(path) else []
    if not paths:
        raise FilesError(f"no images at {files.shown(url)}")
    return ["::".join([system.unstrip_protocol(found), *outer]) for found in sorted(paths)]


@contextmanager
def _reached(place: str) -> Iterator[None]:
    """Raises FilesError for a file system that is not installed, not known, not reached or damaged."""
    try:
        yield
    except Exception as error:  # each file system has its own exceptions
        raise FilesError(f"{files.shown(place)}: {files.shown(str(error)) or type(error).__name__}") from None


def _utf8(path: str) -> str:
    """Parquet's strings are Unicode; a file's name need not be, and what is not is escaped."""
    return path.encode("utf-8", "backslashreplace").decode()


class Output:
    """A folder, a path or a URL, and the parts in it. Raises FilesError if its file system cannot be reached."""

    def __init__(self, folder: str, options: RunOptions) -> None:
        self._place = folder
        self.options = options
        with _reached(folder):
            self._system, self._folder = url_to_fs(folder)

    def done(self, found: Iterable[str]) -> dict[str, bool]:
        """The files of `found` that a part holds, and whether each was answered.

        Raises FilesError for a damaged part, and for one with other options.
        """
        done: dict[str, bool] = {}
        with _reached(self._place):
            # Not glob: the folder's own name may look like a pattern.
            parts = [
                part for part in self._system.find(self._folder, maxdepth=1) if PART_NAME.fullmatch(Path(part).name)
            ]
        for part in parts:
            try:
                with self._system.open(part, "rb") as file:
                    table = pq.read_table(file, columns=["path", "error"])
                options = RunOptions(**json.loads(table.schema.metadata[b"asked"]))
            except (OSError, ValueError, TypeError, KeyError) as error:  # pyarrow's errors are among them
                raise FilesError(f"{files.shown(part)} is no part, or is damaged: delete it ({_root(error)})") from None
            if options != self.options:
                raise FilesError(
                    f"the output holds answers of {options}; this is {self.options}: choose another folder"
                )
            done.update((row["path"], row["error"] is None) for row in table.to_pylist())
        return {path: done[_utf8(path)] for path in found if _utf8(path) in done}

    def make(self) -> None:
        """Make the folder. Raises FilesError."""
        with _reached(self._place):
            self._system.makedirs(self._folder, exist_ok=True)

    def write(self, results: Sequence[FileResult]) -> None:
        """Write a part. Raises the errors of the file system; it leaves no unfinished file then."""
        rows = [{**json.loads(files.as_json(result)), "model": self.options.model} for result in results]
        for row in rows:
            row["path"] = _utf8(row["path"])
        table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({"asked": json.dumps(asdict(self.options))}))
        # The name is a hash of the paths, so a recomputed part, as after a node's death, replaces itself.
        name = hashlib.sha256("\n".join(row["path"] for row in rows).encode()).hexdigest()[:16]
        self.make()
        unfinished = f"{self._folder}/.{name}.unfinished"
        try:
            with self._system.open(unfinished, "wb") as file:
                pq.write_table(table, file)
            self._system.mv(unfinished, f"{self._folder}/part-{name}.parquet")
        except BaseException:
            with suppress(Exception):  # the first error is the one to report
                self._system.rm(unfinished)
            raise


class Part:
    """An actor of Ray Data. It loads the model once, then computes parts."""

    def __init__(self, output: Output, settings: Settings) -> None:
        self._output = output
        self._settings = settings
        self._loaded = load_session(settings)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        results = asyncio.run(self._results([os.fsdecode(path) for path in row["paths"]]))
        self._output.write(results)
        return asdict(PartSummary(len(results), sum(result.fault is not None for result in results)))

    async def _results(self, paths: Sequence[str]) -> list[FileResult]:
        stream = files.classify(paths, self._settings, self._loaded, self._output.options.top_k, read=_read)
        async with aclosing(stream):
            return [result async for result in stream]


def _read(path: Path | str, max_bytes: int) -> bytes:
    local = _local(str(path)) if "://" in str(path) else path
    if local is not None:
        return files.read(local, max_bytes)
    try:
        with fsspec.open(path, "rb") as file:
            content = bytes(file.read(max_bytes + 1))
    except OSError:
        raise
    except Exception as error:  # each file system has its own exceptions
        raise OSError(0, f"{type(error).__name__}: {error}") from None
    if len(content) > max_bytes:
        raise PayloadTooLarge(f"the file has more than the {max_bytes} bytes that are accepted")
    check_size(content, max_bytes)
    return content


def classify(found: Sequence[str], output: Output, settings: Settings) -> Iterator[PartSummary]:
    """Classify the files, and yield a summary of each part when it is finished. Raises ClusterError.

    A worker has INFERENCE_THREADS cores, by default one. The cluster's cores give the number of workers.
    """
    if not found:
        return
    cores = settings.inference_threads if "inference_threads" in settings.model_fields_set else 1
    place = settings.model_dir.absolute() if isinstance(settings.model_dir, Path) else settings.model_dir
    settings = settings.model_copy(update={"inference_threads": cores, "model_dir": place})
    names = [os.fsencode(path) for path in found]
    parts = [{"paths": names[start : start + PART_FILES]} for start in range(0, len(names), PART_FILES)]
    try:
        with _cluster(cores):
            workers = max(1, int(ray.cluster_resources().get("CPU", 1)) // cores)
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            rows = ray.data.from_items(parts, override_num_blocks=min(len(parts), MAX_BLOCKS)).map(
                Part,  # type: ignore[arg-type]  # Ray makes it, then calls it
                fn_constructor_args=(output, settings),
                num_cpus=cores,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(parts))),
            )
            for row in rows.iter_rows():
                yield PartSummary(**row)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a worker failed: {_root(error)}") from error


def _root(error: BaseException) -> str:
    """The original error on one line: Ray wraps the error of a worker in its own."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def _cluster(cores: int) -> Iterator[None]:
    """Connect to the running cluster or to RAY_ADDRESS, or start Ray on this machine, until the block ends."""
    if ray.is_initialized():
        yield
        return
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if "RAY_ADDRESS" not in os.environ:
        arguments |= {
            "address": "local",
            "num_cpus": max(cores, available_cores()),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(**arguments)
    except Exception as error:  # Ray raises various exceptions if it cannot start
        raise ClusterError(f"Ray cannot start, or be reached: {_root(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()
