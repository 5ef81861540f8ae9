"""GET /model: which model answers, and where it comes from."""

from fastapi import APIRouter

from ...bundle.manifest import Manifest
from ..schemas import Model
from ..service import AskedModel

router = APIRouter(tags=["model"])


@router.get("/model", response_model=Model)
async def model(asked: AskedModel) -> Manifest:
    """The bundle's manifest, without its self-check."""
    return asked.bundle.manifest
