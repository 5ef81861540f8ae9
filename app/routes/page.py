"""What a browser sees: the documentation and the pages behind the problems' types. No other host is asked."""

from importlib import resources

from fastapi import APIRouter
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from app.problems import PROBLEMS, NotFound

router = APIRouter(include_in_schema=False)

# Swagger UI styles its elements inline; scripts come from this service alone.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS = resources.files("app").joinpath("web/docs.html").read_text()

# Swagger UI's files, from the fastapi-offline package, and our own.
swagger_files = StaticFiles(packages=[("fastapi_offline", "static")])
own_files = StaticFiles(packages=[("app", "web")])


@router.get("/")
async def home() -> Response:
    return RedirectResponse("docs")


@router.get("/docs")
async def docs() -> Response:
    """Swagger UI over /openapi.json."""
    return HTMLResponse(DOCS, headers={"Content-Security-Policy": DOCS_POLICY})


@router.get("/problems/{code}")
async def problem(code: str) -> Response:
    """What a problem document's `type` means."""
    if code not in PROBLEMS:
        raise NotFound(f"there is no problem {code[:40]!r}: there are {', '.join(PROBLEMS)}")
    kind = PROBLEMS[code]
    text = f"{kind.title} (HTTP status {kind.status}, code {code})\n\n{kind.__doc__}\n"
    return Response(text, media_type="text/plain; charset=utf-8")
