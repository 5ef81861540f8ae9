"""GET /metrics: Prometheus."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from ..schemas import TEXT
from ..service import RunningService

router = APIRouter(tags=["operations"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": TEXT}}}})
async def metrics(service: RunningService) -> Response:
    """Traffic, times, queue, classes and confidence, in the Prometheus text format."""
    return Response(await service.render_metrics(), media_type=CONTENT_TYPE_LATEST)
