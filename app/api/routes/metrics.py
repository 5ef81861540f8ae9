"""GET /metrics: Prometheus."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from ..service import Service

router = APIRouter(tags=["operations"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: Service) -> Response:
    """Traffic, times, queue, classes and confidence, in the Prometheus text format."""
    service.telemetry.queue_images.set(service.engine.reserved_images)
    return Response(service.telemetry.render(), media_type=CONTENT_TYPE_LATEST)
