"""Image files on this machine in, predictions out; no server and no HTTP.

    paths = find(["photos", "more/*.jpg"])
    async for result in classify(paths, settings, loaded, top_k=3):
        print(as_json(result))

It is the service's own engine and classifier, with its settings and its limits on a file; there is no deadline.
"""

import asyncio
import glob
import json
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .bundle.reader import Bundle
from .errors import Problem
from .imaging.formats import check_size
from .inference.answers import Fault, ImageResult
from .inference.classifier import Classifier
from .inference.sessions import Session
from .settings import Settings

# What a folder is searched for; a file that is named is tried whatever its name.
SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp"})


class FilesError(Exception):
    """Nothing can be classified; the message is one line for whoever typed the command."""


@dataclass(frozen=True)
class FileResult:
    """What a file shows, or why that cannot be said: one of the two is there."""

    path: Path | str
    answer: ImageResult | None = None
    fault: Fault | None = None


def find(patterns: Iterable[str]) -> list[Path]:
    """The files that paths and globs name, and the images in folders and their folders; each once, in order.

    Raises FilesError for a pattern that names nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
        files = [file for match in matches for file in _files(match)]
        if not files:
            raise FilesError(_nothing(pattern, path))
        found.update(dict.fromkeys(files))
    return list(found)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def _nothing(pattern: str, path: Path) -> str:
    if path.is_dir():
        return f"no images in the folder {shown(path)}"
    if glob.has_magic(pattern):
        return f"nothing matches {shown(path)}"
    return f"there is no file or folder {shown(path)}"


def read(path: Path | str, max_bytes: int) -> bytes:
    """A file's content, of which there must be some. Raises OSError, or a Problem for more than `max_bytes`."""
    path = Path(path)
    if not path.is_file():
        raise OSError(0, "not a regular file")  # reading from a pipe or a device may never end
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    check_size(content, max_bytes)
    return content


async def classify(
    paths: Iterable[Path | str],
    settings: Settings,
    loaded: tuple[Bundle, Session],
    top_k: int,
    read: Callable[[Path | str, int], bytes] = read,
) -> AsyncIterator[FileResult]:
    """One result a file, in order; `read` gets a file's content. Raises a Problem only when the engine dies."""
    bundle, session = loaded
    classifier = Classifier.start(bundle.manifest, session, settings)

    async def one(path: Path | str) -> FileResult:
        try:
            content = await asyncio.to_thread(read, path, settings.max_file_bytes)
            result = await classifier.classify(content, math.inf)
        except Problem as problem:
            if problem.status >= 500:
                raise
            return FileResult(path, fault=Fault(code=problem.code, detail=problem.detail))
        except OSError as error:
            return FileResult(path, fault=Fault(code="unreadable_file", detail=error.strerror or "it cannot be read"))
        return FileResult(path, result.answer(top_k))

    # So many files are in memory at once: enough for every worker to fill a batch while the next ones decode.
    window = 2 * settings.inference_threads * settings.max_batch_images
    under_way: deque[asyncio.Task[FileResult]] = deque()
    try:
        for path in paths:
            under_way.append(asyncio.create_task(one(path)))
            if len(under_way) == window:
                yield await under_way.popleft()
        while under_way:
            yield await under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        classifier.close()


def as_json(result: FileResult) -> str:
    """One line, ASCII: {"path"} and the fields of an ImageResult, or {"path", "error": {"code", "detail"}}."""
    rest = result.answer.model_dump() if result.answer else {}
    if result.fault:
        rest = {"error": result.fault.model_dump()}
    return json.dumps({"path": str(result.path), **rest})


def as_row(result: FileResult, path_width: int) -> str:
    """One line of a table: the path, a `?` if the model abstains, the classes and probabilities; or the error."""
    cells = []
    if result.answer:
        if result.answer.abstain is not None:
            cells.append("?" if result.answer.abstain else " ")
        cells += [f"{item.label:10} {item.probability:6.1%}" for item in result.answer.predictions]
    if result.fault:
        cells = [f"error: {result.fault.detail}"]
    return "  ".join([f"{shown(result.path):{path_width}}", *cells])


def shown(path: Path | str) -> str:
    """The path on one line of any terminal: what is not printable is escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in str(path)
    )
