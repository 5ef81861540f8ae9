"""The prefix that a proxy serves the application under, whether or not the proxy strips it from paths."""

from starlette.types import ASGIApp, Receive, Scope, Send


class Prefix:
    """Sets `root_path` to the prefix, and makes `path` begin with it, as the ASGI specification requires.

    `prefix` is empty, or begins with a slash and does not end with one.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.prefix:
            path = scope["path"]
            kept = path == self.prefix or path.startswith(f"{self.prefix}/")
            scope = {**scope, "root_path": self.prefix, "path": path if kept else self.prefix + path}
        await self.app(scope, receive, send)
