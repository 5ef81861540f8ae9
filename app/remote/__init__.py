"""Bundles that lie elsewhere: fetched once into a cache, verified, and served from there.

    folder = local_folder("hf://owner/name@revision", settings.model_cache, settings.model_digest)
    bundle = Bundle.load(folder)

fsspec, and for hf:// huggingface_hub, are imported when an address is fetched, never for a folder.
"""

from collections.abc import Collection
from pathlib import Path

from ..bundle.reader import BundleError
from .address import Address


def local_folder(place: Path | str, cache: Path, digests: Collection[str] = ()) -> Path:
    """The folder itself, or the cached copy of the bundle at an address, which is fetched if need be.

    `digests`: of the bundles that may be served; none: all. Raises BundleError with one line that names the address.
    """
    if isinstance(place, Path):
        return place
    address = Address(place)
    try:
        from .fetch import fetch
    except ImportError as error:
        raise BundleError(f"{address}: an address needs the extra 'remote' ({error})") from None
    return fetch(address, cache, digests)
