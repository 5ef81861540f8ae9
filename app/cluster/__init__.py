"""The service and the command for files on Ray (extra `ray`): `serve run app.cluster:deployment`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .serve import deployment

__all__ = ["deployment"]


def __getattr__(name: str) -> Any:
    # On demand: `classify --ray` needs no Ray Serve.
    if name == "deployment":
        from .serve import deployment

        return deployment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
