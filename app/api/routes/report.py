"""GET /metrics/report: the model's quality, measured when it was made."""

from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from ...bundle.names import PICTURES
from ...bundle.report import Report
from ...errors import NotFound
from ..etags import revalidated
from ..schemas import BINARY, TEXT
from ..service import AskedModel

router = APIRouter(tags=["report"])

VARY = {"Vary": "Accept"}


@router.get(
    "/metrics/report",
    response_model=Report,
    responses={200: {"content": {"text/plain": {"schema": TEXT}}}, 304: {"description": "Unchanged."}},
)
async def report(request: Request, asked: AskedModel, accept: Annotated[str, Header()] = "*/*") -> Response:
    """Per-class precision, recall, f1 and support, accuracy with its interval, the confusion matrix, training history;
    calibration, prediction sets, abstention, selective accuracy and robustness.

    `Accept: text/plain` gives scikit-learn's table.
    """
    if _prefers_text(accept):
        return revalidated(request, asked.bundle.read("report.txt"), "text/plain; charset=utf-8", VARY)
    return revalidated(request, asked.bundle.read("report.json"), "application/json", VARY)


@router.get(
    "/metrics/report/{picture}.png",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {"schema": BINARY}}},
        304: {"description": "Unchanged."},
        404: {"description": "There is no such picture."},
    },
)
async def report_picture(request: Request, asked: AskedModel, picture: str) -> Response:
    """accuracy_and_loss, confusion_matrix, reliability, risk_coverage, robustness or mistakes."""
    name = f"{picture}.png"
    if name not in PICTURES or name not in asked.bundle:
        there = ", ".join(known for known in PICTURES if known in asked.bundle)
        raise NotFound(f"there is no picture {picture[:40]!r}: there are {there}")
    return revalidated(request, asked.bundle.read(name), "image/png")


def _prefers_text(accept: str) -> bool:
    """Whether the client prefers text/plain to JSON."""
    quality = {}
    for item in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        quality[kind] = next((_quality(value[2:]) for value in parameters if value.startswith("q=")), 1.0)
    return quality.get("text/plain", 0.0) > max(quality.get("application/json", 0.0), 0.0)


def _quality(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return 0.0
