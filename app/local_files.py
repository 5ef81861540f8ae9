"""Classifies image files on this machine, without a server.

    paths = find(["photos", "more/*.jpg"])
    async with aclosing(classify(paths, settings, loaded, top_k=3)) as results:
        async for result in results:
            print(as_json(result))

It uses the engine and the classifier of the service, with its settings and file limits, but without a deadline.

Every path gets one result. A folder that cannot be listed gets an error as its result. A link to a file counts as a
file of its own. Links to folders are followed only if a path or a glob without `**` names them, so a search ends even
if links form a cycle. A file that is found in several ways is taken once. In a folder, files are images by their names
or by their first bytes; the others are skipped.
"""

import asyncio
import fnmatch
import glob
import io
import json
import math
import os
import stat
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .bundle.reader import Bundle
from .errors import PayloadTooLarge, Problem
from .imaging.formats import DECODERS, check_size, name_of
from .inference.answers import Fault, ImageResult
from .inference.classifier import Classifier
from .inference.sessions import Session
from .settings import Settings

STANDARD_INPUT = "-"
NAMED_AT_MOST = 10  # of the files that are skipped
HEAD_BYTES = 128  # in which a format shows
# Files in a folder that are images whatever their first bytes are; a file that is named is read in any case.
SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp"})


OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class FilesError(Exception):
    """Nothing can be classified; the message is one line for the user of the command."""


@dataclass(frozen=True)
class FileResult:
    """The answer for a file, or the reason why there is none: exactly one of `answer` and `fault` is set."""

    path: Path | str
    answer: ImageResult | None = None
    fault: Fault | None = None


@dataclass(frozen=True)
class Skipped:
    """A file in a folder that is not read; `format` of a picture that has no decoder here, else None."""

    path: Path
    format: str | None


def find(patterns: Iterable[str], skipped: list[Skipped] | None = None) -> list[Path]:
    """The files that paths and globs name, and the images in folders and their folders; each once, in order.

    The other files of folders are added to `skipped`. A folder that cannot be listed is in the list itself. Raises
    FilesError for a pattern that names nothing.
    """
    found: dict[str, Path] = {}
    left_out: dict[str, Skipped] = {}
    for pattern in patterns:
        others: list[Skipped] = []
        files = [file for match in _matches(pattern) for file in _files(match, others)]
        if not files:
            raise FilesError(_nothing(pattern) + (f"; {about_skipped(others)}" if others else ""))
        for file in files:
            found.setdefault(entry(file), file)
        for one in others:
            left_out.setdefault(entry(one.path), one)
    if skipped is not None:
        skipped += (one for name, one in left_out.items() if name not in found)
    return list(found.values())


def about_skipped(skipped: Sequence[Skipped]) -> str:
    """How many files were skipped, and the names of the first of them, on one line."""
    names = [f"{shown(one.path)} ({one.format or 'no image'})" for one in skipped[:NAMED_AT_MOST]]
    more = len(skipped) - len(names)
    return f"skipped {len(skipped)} file{'s' * (len(skipped) > 1)}: {', '.join(names)}" + (
        f" and {more} more" if more else ""
    )


def entry(path: Path) -> str:
    """The folder's real path and the file's name: the same for all paths to one file."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _matches(pattern: str) -> list[Path]:
    """The pattern itself if it is a path, even an inaccessible one; otherwise the paths that it matches."""
    try:
        os.lstat(pattern)
    except (OSError, ValueError) as error:  # ValueError: a NUL
        if isinstance(error, ValueError):
            return []
        if glob.has_magic(pattern):
            return sorted(_expand(pattern))
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return []
    return [Path(pattern)]


def _expand(pattern: str) -> Iterable[Path]:
    """The paths of glob(pattern, recursive=True), but `**` follows no links, and unreadable folders are included."""
    first, *parts = Path(pattern).parts
    absolute = Path(pattern).is_absolute()
    places = [Path(first) if absolute else Path()]
    unreadable: list[Path] = []
    for part in parts if absolute else [first, *parts]:
        found = [path for place in places for path in _step(place, part, unreadable)]
        places = list({entry(path): path for path in found}.values())
    if pattern.endswith(os.sep):
        places = [path for path in places if os.path.isdir(path)]
    return {*places, *unreadable}


def _step(place: Path, part: str, unreadable: list[Path]) -> Iterator[Path]:
    """The paths in `place` that one part of a glob matches."""
    if not glob.has_magic(part):
        try:
            os.lstat(place / part)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError:
            pass  # it may exist: reading it will report the error
        yield place / part
    elif not os.path.isdir(place):
        return
    elif part == "**":
        for folder, entries in _walk(place, unreadable, hidden=False):
            yield folder
            visible = (item for item in entries if not item.name.startswith("."))
            yield from (folder / item.name for item in visible if not (item.is_symlink() and os.path.isdir(item)))
    else:
        for item in _list(place, unreadable):
            if fnmatch.fnmatch(item.name, part) and (part.startswith(".") or not item.name.startswith(".")):
                yield place / item.name


def _files(path: Path, skipped: list[Skipped]) -> list[Path]:
    """The images in a folder and in its folders, sorted; anything else is a file, whatever its name.

    The other files of a folder are added to `skipped`.
    """
    if not os.path.isdir(path):
        return [path]
    unreadable: list[Path] = []
    images = []
    for folder, entries in _walk(path, unreadable, hidden=True):
        for item in entries:
            if os.path.isdir(item.path):
                continue
            file = folder / item.name
            format = None if Path(item.name).suffix.lower() in SUFFIXES else _format(file)
            if format in DECODERS or Path(item.name).suffix.lower() in SUFFIXES:
                images.append(file)
            else:
                skipped.append(Skipped(file, format))
    skipped.sort(key=lambda one: one.path)
    return sorted([*images, *unreadable])


def _format(path: Path) -> str | None:
    """The image format that a regular file begins with; None for others and for what cannot be read."""
    try:
        _check_regular(os.stat(path))
        descriptor = os.open(path, OPEN_FLAGS)
        with open(descriptor, "rb", buffering=0) as file:
            _check_regular(os.fstat(descriptor))
            return name_of(_read_up_to(file, HEAD_BYTES))
    except (OSError, ValueError):
        return None


def _walk(top: Path, unreadable: list[Path], *, hidden: bool) -> Iterator[tuple[Path, list["os.DirEntry[str]"]]]:
    """A folder and the folders in it, each with its entries. Adds those that cannot be listed to `unreadable`."""
    folders = [top]  # os.walk of Python 3.11 calls itself, and fails at a depth of a thousand
    while folders:
        folder = folders.pop()
        entries = _list(folder, unreadable)
        yield folder, entries
        folders += [
            folder / item.name
            for item in entries
            if item.is_dir(follow_symlinks=False) and (hidden or not item.name.startswith("."))
        ]


def _list(folder: Path, unreadable: list[Path]) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        unreadable.append(folder)
        return []


def _nothing(pattern: str) -> str:
    if os.path.isdir(pattern):
        return f"no images in the folder {shown(pattern)}"
    if glob.has_magic(pattern):
        return f"nothing matches {shown(pattern)}"
    return f"there is no file or folder {shown(pattern) or repr(pattern)}"


def read(path: Path | str, max_bytes: int) -> bytes:
    """The content of a regular file, or of standard input for "-", at least one byte. Never waits for another pipe.

    Raises OSError, or a Problem for an empty file and for one of more than `max_bytes`.
    """
    if path == STANDARD_INPUT:
        content = sys.stdin.buffer.read(max_bytes + 1) if sys.stdin is not None else b""
        check_size(content, max_bytes)
        return content
    if os.path.isdir(path):  # a search found this folder and could not list it
        os.scandir(path).close()
        raise OSError(0, "it is a folder")
    try:
        _check_regular(os.stat(path))  # before opening: to open a device can have effects
        descriptor = os.open(path, OPEN_FLAGS)
    except ValueError as error:  # a NUL, or a character that the file system's encoding does not have
        raise OSError(0, str(error)) from None
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        _check_regular(status)
        content = b""
        # Files of /proc report a size of 0 and count as empty: some of them never end.
        if 0 < status.st_size <= max_bytes:
            content = _read_up_to(file, max_bytes + 1)
        size = status.st_size
        if len(content) > max_bytes:  # it has grown since
            size = max(len(content), os.fstat(descriptor).st_size)
    if size > max_bytes:
        raise PayloadTooLarge(f"the file has {size} bytes, at most {max_bytes} are accepted")
    check_size(content, max_bytes)
    return content


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "not a regular file")


def _read_up_to(file: io.FileIO, size: int) -> bytes:
    """Up to `size` bytes. Raises OSError if reading would have to wait."""
    content = bytearray()
    while len(content) < size:
        piece = file.read(size - len(content))
        if piece is None:
            raise OSError(0, "not a regular file")
        if not piece:
            break
        content += piece
    return bytes(content)


async def classify(
    paths: Iterable[Path | str],
    settings: Settings,
    loaded: tuple[Bundle, Session],
    top_k: int,
    read: Callable[[Path | str, int], bytes] = read,
) -> AsyncGenerator[FileResult, None]:
    """One result for each file, in order; `read` gets a file's content. Raises a Problem only when the engine dies.

    Close it (contextlib.aclosing): a process that ends while the engine's threads compute is aborted.
    """
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

    # The number of files in memory at once: every worker can fill a batch while the next files are decoded.
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
    """The path on one line of any terminal: unprintable characters are escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in str(path)
    )
