"""The query of a request. FastAPI reads the parameters that a route has, and passes over all others."""

from collections.abc import Iterator

from fastapi.dependencies.models import Dependant
from starlette.requests import Request

from ..errors import InvalidParameter


def check_query(request: Request) -> None:
    """Raises InvalidParameter for a parameter that the route does not have: it may be a misspelt one."""
    if request.scope["query_string"]:
        known = list(_names(request.scope["route"].dependant))
        for name in request.query_params:
            if name not in known:
                raise InvalidParameter(f"there is no parameter {name[:40]!r}; known here: {', '.join(known)}")


def _names(route: Dependant) -> Iterator[str]:
    """Those of a route, then those of what it depends on."""
    yield from (field.alias for field in route.query_params)
    for dependency in route.dependencies:
        yield from _names(dependency)
