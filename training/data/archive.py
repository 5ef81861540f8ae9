"""Published files: found in a folder, or downloaded from the first address that has them.

    fetch(archive, folder)      # the path of the whole file

A file is used only if it `is_whole`: of an Archive, every address must give the very bytes that its digest is of.
"""

import hashlib
import os
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.error import HTTPError
from urllib.parse import urlsplit

from training.errors import TrainingError

if TYPE_CHECKING:
    from training.data.download_progress import DownloadProgress

TIMEOUT = 30  # seconds without a byte
BLOCK = 2**16  # bytes


class Published(Protocol):
    """A file to download. title: for people; size: about how many bytes; most: how many it may have."""

    @property
    def title(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def most(self) -> int: ...

    def addresses(self) -> tuple[str, ...]:
        """Where to ask for the file, in this order."""
        ...

    def is_whole(self, path: Path) -> bool:
        """Whether the file is the published one."""
        ...

    def remedy(self, folder: Path) -> str:
        """What to do, for people, when no address has the file."""
        ...


class Unavailable(TrainingError):
    """No address has a file. failures: a phrase each."""

    def __init__(self, title: str, failures: Sequence[str], remedy: str) -> None:
        super().__init__(f"{title} cannot be downloaded ({'; '.join(failures)}): {remedy}")
        self.failures, self.remedy = failures, remedy


@dataclass(frozen=True)
class Archive:
    """An archive that is published with its digest. variable: the environment variable that names the only address."""

    title: str
    name: str
    size: int
    md5: str
    mirrors: tuple[str, ...]
    variable: str

    @property
    def most(self) -> int:
        return self.size

    def addresses(self) -> tuple[str, ...]:
        named = os.environ.get(self.variable)
        return (named,) if named else self.mirrors

    def is_whole(self, path: Path) -> bool:
        if _size(path) != self.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == self.md5

    def remedy(self, folder: Path) -> str:
        return f"put {self.name} (MD5 {self.md5}) into {folder}, or set {self.variable} to an address that has it"


def fetch(archive: Published, folder: Path) -> Path:
    """The file's path in `folder`; it is downloaded unless it is there.

    A part that was downloaded before is completed, from whichever address. Raises Unavailable when no address has
    the file, and OSError when `folder` cannot be written.
    """
    path = folder / archive.name
    if archive.is_whole(path):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # Not at the top: machines that are rented for `training.gpu` need no rich.
    from training.data.download_progress import DownloadProgress

    part = path.with_name(f"{archive.name}.part")
    failures = []
    with DownloadProgress(archive.title, archive.size) as progress:
        for url in archive.addresses():
            host = urlsplit(url).netloc or url
            progress.begin(host, _size(part))
            try:
                if _complete(archive, url, part, progress):
                    part.replace(path)
                    return path
                failures.append(f"{host}: another file")
            except (OSError, HTTPException, ValueError) as error:
                failures.append(f"{host}: {_reason(error)}")
    raise Unavailable(archive.title, failures, archive.remedy(folder))


def _complete(archive: Published, url: str, part: Path, progress: "DownloadProgress") -> bool:
    """Whether the address completes `part` to the whole file.

    A part that was begun from another address may be to blame: it is then downloaded again from its beginning.
    """
    while True:
        begun = part.exists()
        _append_all(url, part, archive.most, progress)
        if archive.is_whole(part):
            return True
        part.unlink()
        if not begun:
            return False


def _append_all(url: str, part: Path, most: int, progress: "DownloadProgress") -> None:
    """Append to `part` until it is complete; a connection that breaks is made again while it gives new bytes."""
    while True:
        before = _size(part)
        try:
            return _append(url, part, most, progress)
        except (OSError, HTTPException):
            if _size(part) <= before:
                raise


def _append(url: str, part: Path, most: int, progress: "DownloadProgress") -> None:
    have = _size(part)
    if have >= most:
        return
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("its address does not begin with http:// or https://")
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    try:
        opened = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
    except HTTPError as error:
        if error.code == 416 and have:  # there is no byte after these
            return
        raise
    with opened as answer:
        # A server without ranges begins at the beginning.
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        with part.open("ab" if resumed else "wb") as file:
            for block in _blocks(answer, most - (have if resumed else 0)):
                file.write(block)
                progress.update(file.tell())
            if answer.length and file.tell() < most:
                raise ConnectionError(f"the connection broke after {file.tell():,} bytes")


def _blocks(answer: HTTPResponse, most: int) -> Iterator[bytes]:
    while most > 0 and (block := answer.read(min(BLOCK, most))):
        most -= len(block)
        yield block


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code}"
    cause = getattr(error, "reason", error)  # URLError holds what happened
    return getattr(cause, "strerror", None) or " ".join(str(cause).split()) or type(cause).__name__
