"""The files at an address, whatever it is: a folder of the web, of a bucket or of a hub's repository, or an archive.

with files_at(address, temporary) as open_file:
    open_file("bundle.json").read(100)
"""

import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias

import fsspec

from ..bundle.names import MANIFEST
from ..bundle.reader import BundleError
from .address import Address

MAX_BYTES = 512 * 1024 * 1024  # of an archive, and of a bundle's files together; the shipped bundle has 19 MB
BLOCK = 1024 * 1024

OpenFile: TypeAlias = Callable[[str], IO[bytes]]


def copy(file: IO[bytes], path: Path, limit: int) -> int:
    """Write what a file holds, at most `limit` bytes, to a new file at `path`. Returns their number.

    Raises BundleError when there are more.
    """
    copied = 0
    with file, path.open("xb") as written:
        while block := file.read(BLOCK):
            copied += len(block)
            if copied > limit:
                raise BundleError(f"it is too large: all together may have {MAX_BYTES:,} bytes")
            written.write(block)
    return copied


@contextmanager
def files_at(address: Address, temporary: Path) -> Iterator[OpenFile]:
    """A function that opens a file by its name, and raises FileNotFoundError. `temporary`: a folder for an archive.

    Raises BundleError for an archive that no bundle is in or that a careless program would unpack to other places,
    ImportError without the package for its scheme, and what that package raises.
    """
    # Nothing is remembered from one fetch to the next. Proxies are those of the environment.
    options: dict[str, Any] = {"client_kwargs": {"trust_env": True}} if address.web else {}
    system, path = fsspec.core.url_to_fs(address.text, skip_instance_cache=True, **options)
    streamed = {"block_size": 0} if address.web or address.scheme == "hf" else {}
    if address.archive is None:
        yield lambda name: system.open(address.file(name), "rb", **streamed)
        return
    archive = temporary / "archive"
    copy(system.open(path, "rb", **streamed), archive, MAX_BYTES)
    with (_zip if address.archive == ".zip" else _tar)(archive) as open_file:
        yield open_file


@contextmanager
def _zip(path: Path) -> Iterator[OpenFile]:
    with zipfile.ZipFile(path) as archive:
        files = {}
        for one in archive.infolist():
            _check(one.filename, stat.S_IFMT(one.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR))
            if not one.is_dir():
                files[PurePosixPath(one.filename)] = one
        yield _opener(files, archive.open)


@contextmanager
def _tar(path: Path) -> Iterator[OpenFile]:
    with tarfile.open(path, "r:") as archive:
        files = {}
        for one in archive:
            _check(one.name, one.isreg() or one.isdir())
            if one.isreg():
                files[PurePosixPath(one.name)] = one
        yield _opener(files, archive.extractfile)


def _check(name: str, ordinary: bool) -> None:
    """Nothing is unpacked to a member's own path. But an archive with such members was not made in good faith."""
    if not ordinary:
        raise BundleError(f"the archive holds a link or a device, {name[:80]!r}: it may hold files and folders")
    if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
        raise BundleError(f"the archive holds {name[:80]!r}, which leads out of its folder")


def _opener(files: Mapping[PurePosixPath, Any], open_member: Callable[[Any], Any]) -> OpenFile:
    manifests = [path for path in files if path.name == MANIFEST]
    if len(manifests) != 1:
        raise BundleError(f"the archive must hold one {MANIFEST}, it holds {len(manifests)}")
    root = manifests[0].parent

    def open_file(name: str) -> IO[bytes]:
        if root / name not in files:
            raise FileNotFoundError(name)
        file: IO[bytes] = open_member(files[root / name])
        return file

    return open_file
