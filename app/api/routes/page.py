"""The page, the documentation and the pages behind the problems' types. They load nothing from other hosts."""

import mimetypes
import re
from functools import cache
from html import escape
from importlib import resources

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from ... import __name__ as PACKAGE
from ...bundle.manifest import DataSet
from ...errors import BY_CODE, NotFound
from ...settings import Settings
from ..etags import revalidated
from ..request_context import context_of
from ..service import RunningService

router = APIRouter(include_in_schema=False)

# Nothing inline, nothing from other hosts; a visitor's own images are shown from blob: addresses.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
# Swagger UI styles its elements inline; scripts come from this service alone.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
WEB = resources.files(PACKAGE).joinpath("web")
PAGE = WEB.joinpath("index.html").read_text(encoding="utf-8")
FEEDBACK = '<meta name="feedback" content="{}">'  # tells the scripts whether POST /feedback exists
PROMISE = "Images are not stored. The service reads each one in memory, answers, and discards it."
DOCS = WEB.joinpath("docs.html").read_text(encoding="utf-8")
SAMPLES = re.compile(r'\n *<div class="samples">.*?</div>', re.DOTALL)

# Python before 3.12 and some systems map .js to another type, which browsers refuse for modules.
mimetypes.add_type("text/javascript", ".js")


class Files(StaticFiles):
    """Files keep their names when they change, so browsers revalidate them before each use.

    Logs and metrics name all of them by `mount`, the path under which they are, and a template.
    """

    def __init__(self, mount: str, package: tuple[str, str]) -> None:
        super().__init__(packages=[package])
        self.mount = mount

    async def get_response(self, path: str, scope: Scope) -> Response:
        context_of(scope).route = f"{self.mount}/{{path}}"
        # Without this, Starlette reads the request while it answers, and meets what is wrong with its body too late.
        scope["asgi"] = {**scope.get("asgi", {}), "spec_version": "2.4"}
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


# Swagger UI's files, from the fastapi-offline package, and our own.
swagger_files = Files("/assets/swagger", ("fastapi_offline", "static"))
own_files = Files("/assets/web", (PACKAGE, "web"))


@cache
def titled(page: str, of: DataSet) -> str:
    """The page with the title of what the model was trained on; the samples are of CIFAR-10 alone."""
    if of == DataSet():
        return page
    return SAMPLES.sub("", page).replace(f"{DataSet().title} classifier", f"{escape(of.title)} classifier")


@router.get("/")
async def home(request: Request, service: RunningService) -> Response:
    """The page."""
    page, settings = titled(PAGE, service.bundle.manifest.data_set), service.settings
    if settings.feedback_dir:
        page = page.replace(PROMISE, _about_copies(settings)).replace(FEEDBACK.format("off"), FEEDBACK.format("on"))
    return revalidated(request, page.encode(), "text/html; charset=utf-8", {"Content-Security-Policy": PAGE_POLICY})


def _about_copies(settings: Settings) -> str:
    if not settings.feedback_sample:
        return PROMISE
    return (
        "To learn from its errors, the service keeps small copies of some images that it is unsure of, "
        f"for at most {settings.feedback_days:g} days. All others are not stored."
    )


@router.get("/docs")
async def docs(service: RunningService) -> Response:
    """Swagger UI over /openapi.json."""
    return HTMLResponse(
        titled(DOCS, service.bundle.manifest.data_set), headers={"Content-Security-Policy": DOCS_POLICY}
    )


@router.get("/problems/{code}")
async def problem(code: str) -> Response:
    """The explanation of a problem document's `type`."""
    if code not in BY_CODE:
        raise NotFound(f"there is no problem {code[:40]!r}: there are {', '.join(BY_CODE)}")
    kind = BY_CODE[code]
    text = f"{kind.title} (HTTP status {kind.status}, code {code})\n\n{kind.__doc__}\n"
    return Response(text, media_type="text/plain; charset=utf-8")
