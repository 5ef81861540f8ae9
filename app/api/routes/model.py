"""GET /model: which model answers, and where it comes from."""

from fastapi import APIRouter

from ..schemas import Model
from ..service import RunningService

router = APIRouter(tags=["model"])


@router.get("/model")
async def model(service: RunningService) -> Model:
    """The bundle's manifest, without its self-check."""
    return Model.model_validate(service.bundle.manifest.model_dump(exclude={"self_check"}))
