"""httpx, or its fork httpx2 where that alone is installed: `from .http import httpx`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx
else:
    try:
        import httpx
    except ModuleNotFoundError:
        import httpx2 as httpx

__all__ = ["httpx"]
