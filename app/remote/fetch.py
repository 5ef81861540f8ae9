"""The cache of bundles that were fetched: a folder each, whole or not there.

Its name comes from its manifest's digest, or from the address of a commit. So what is in it never changes.
"""

import re
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from ..bundle.manifest import Manifest, sha256
from ..bundle.names import MANIFEST
from ..bundle.reader import Bundle, BundleError, read_manifest
from .address import Address
from .sources import MAX_BYTES, OpenFile, copy, files_at

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_FILES = 100
LONGEST_REASON = 200  # characters that are shown of another library's error
MISSING = ("FileNotFoundError", "RemoteEntryNotFoundError")
REFUSALS = {  # by the names of errors, of which huggingface_hub's are not imported for other addresses
    "RepositoryNotFoundError": "there is no such repository, or it is private and HF_TOKEN does not open it",
    "RevisionNotFoundError": "the repository has no such revision",
    "FileNotFoundError": "there is no such file",
}


def fetch(address: Address, cache: Path, digests: Collection[str]) -> Path:
    """The folder of a verified copy of the bundle at the address.

    Nothing is asked for if a copy is there and the address names a commit, or `digests` one bundle. Otherwise the
    manifest is fetched, and then its files, unless there is a copy with its digest.

    Raises BundleError with one line.
    """
    of_commit = f"hf-{sha256(address.text.encode())}" if address.pinned else None
    pins = [of_commit] if of_commit else list(digests) if len(digests) == 1 else []
    for pin in pins:
        if _whole(cache / pin):
            return cache / pin
    try:
        if address.fault:
            raise BundleError(address.fault)
        if address.scheme == "http" and not digests:
            raise BundleError("http:// is not encrypted, so MODEL_DIGEST must name the bundle")
        cache.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=cache, prefix=".", ignore_cleanup_errors=True) as temporary,
            files_at(address, Path(temporary)) as open_file,
        ):
            folder = Path(temporary) / "bundle"
            manifest = _fetch_manifest(open_file, folder, digests)
            kept = cache / (of_commit or manifest.digest)
            if not _whole(kept):
                _fetch_files(open_file, folder, manifest)
                _keep(folder, kept)
            return kept
    except BundleError as error:
        raise BundleError(f"{address}: {error}") from None
    except Exception as error:  # each file system has its own exceptions
        raise BundleError(f"{address}: {_reason(error)}") from None


def _fetch_manifest(open_file: OpenFile, folder: Path, digests: Collection[str]) -> Manifest:
    folder.mkdir()
    _fetch_file(open_file, MANIFEST, folder, MAX_MANIFEST_BYTES)
    try:
        manifest = read_manifest(folder)
    except BundleError as error:
        raise _without(folder, error) from None
    if digests and manifest.digest not in digests:
        raise BundleError(f"MODEL_DIGEST does not name its digest, {manifest.digest}")
    if len(manifest.files) > MAX_FILES:
        raise BundleError(f"it has {len(manifest.files)} files, {MAX_FILES} are allowed")
    return manifest


def _fetch_files(open_file: OpenFile, folder: Path, manifest: Manifest) -> None:
    left = MAX_BYTES
    for name in manifest.files:
        left -= _fetch_file(open_file, name, folder, left)
    try:
        Bundle.load(folder)
    except BundleError as error:
        raise _without(folder, error) from None


def _fetch_file(open_file: OpenFile, name: str, folder: Path, limit: int) -> int:
    """Returns its size in bytes."""
    try:
        return copy(open_file(name), folder / name, limit)
    except Exception as error:
        if type(_cause(error)).__name__ in MISSING:
            raise BundleError(f"there is no {name}") from None
        raise


def _keep(folder: Path, kept: Path) -> None:
    try:
        folder.rename(kept)
    except OSError:
        if not _whole(kept):  # else another process was faster
            raise


def _whole(folder: Path) -> bool:
    """Whether an undamaged bundle is there. A damaged one is removed."""
    if not folder.is_dir():
        return False
    try:
        Bundle.load(folder)
    except BundleError:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def _without(folder: Path, error: BundleError) -> BundleError:
    """The error without the path of a folder that is gone when it is read."""
    return BundleError(str(error).replace(f"{folder}/", ""))


def _cause(error: BaseException) -> BaseException:
    """Some file systems call every failure a FileNotFoundError, and tell its cause."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def _reason(error: BaseException) -> str:
    """On one line, without addresses, which may hold signatures."""
    error = _cause(error)
    if refusal := REFUSALS.get(type(error).__name__):
        return refusal
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot write to MODEL_CACHE: {error.strerror}"
    text = re.sub(r"\w+://\S+", "…", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:LONGEST_REASON]
