"""Probes. They answer from the event loop alone, so that load on the workers cannot starve them."""

from fastapi import APIRouter

from ..schemas import Health, ProblemDocument
from ..service import RunningService

router = APIRouter(tags=["operations"])


@router.get("/livez")
async def livez() -> Health:
    """The process is alive and its event loop turns."""
    return Health(status="alive")


@router.get("/readyz", responses={503: {"model": ProblemDocument}})
async def readyz(service: RunningService) -> Health:
    """The model is loaded, has passed its self-check, its workers live, and the service is not shutting down."""
    service.check_ready()
    return Health(status="ready")
