"""GET /model: which model answers, and where it comes from."""

from typing import Any

from fastapi import APIRouter

from app.state import Service

router = APIRouter(tags=["model"])


@router.get("/model")
async def model(service: Service) -> dict[str, Any]:
    """The bundle's manifest, without its self-check."""
    return service.bundle.manifest.model_dump(mode="json", exclude={"self_check"})
