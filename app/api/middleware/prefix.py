"""The prefix that a proxy serves the application under, whether or not it strips it from the paths. Pure ASGI.

Everything inside sees what the ASGI specification wants: `root_path` is the prefix, and `path` begins with it.
"""

from starlette.types import ASGIApp, Receive, Scope, Send


class Prefix:
    """Middleware. `prefix` is empty, or begins with a slash and does not end with one."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.prefix:
            path = scope["path"]
            kept = path == self.prefix or path.startswith(f"{self.prefix}/")
            scope = {**scope, "root_path": self.prefix, "path": path if kept else self.prefix + path}
        await self.app(scope, receive, send)


def route_path(scope: Scope) -> str:
    """The path without the prefix."""
    return scope["path"].removeprefix(prefix_of(scope))  # type: ignore[no-any-return]


def prefix_of(scope: Scope) -> str:
    """Inside a mounted application, `root_path` also holds where it is mounted; Starlette keeps the outer one."""
    return scope.get("app_root_path", scope.get("root_path", ""))  # type: ignore[no-any-return]
