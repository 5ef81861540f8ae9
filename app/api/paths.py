"""Paths: the prefix that a proxy serves the application under, and the paths that are treated in their own way."""

from starlette.types import Scope

GRPC = "/inference.GRPCInferenceService"  # calls of this service are requests, see open_inference.rpc
GRPC_INFER = f"{GRPC}/ModelInfer"
PROBES = frozenset(
    {
        *("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"),
        *(f"{GRPC}/ServerLive", f"{GRPC}/ServerReady", "/grpc.health.v1.Health/Check"),
    }
)
# The page holds nothing secret, and a visitor types the API key there. The empty path is a request for the prefix
# without its slash.
PAGE = frozenset({"", "/"})
PAGE_FILES = "/assets/web/"
PROBLEMS = "/problems/"  # fixed texts, to which problem documents refer
LOADS = "/v2/repository/models/"  # what is below it needs one of ADMIN_KEYS
METRICS = "/metrics"  # METRICS_KEY is good for it
IMAGE_UPLOADS = frozenset({"/predict", "/predict/batch", "/explain"})


def route_path(scope: Scope) -> str:
    """The path without the prefix."""
    return scope["path"].removeprefix(prefix_of(scope))  # type: ignore[no-any-return]


def prefix_of(scope: Scope) -> str:
    """The prefix: empty, or a path that begins with a slash and does not end with one.

    Inside a mounted application, `root_path` also holds the place of the mount; Starlette keeps the outer one.
    """
    return scope.get("app_root_path", scope.get("root_path", ""))  # type: ignore[no-any-return]
