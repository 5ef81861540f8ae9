"""One module a resource; each is a few lines around the classifier, the bundle or the telemetry."""

from fastapi import APIRouter

from app.routes import explain, health, inference_protocol, metrics, model, page, predict, report

router = APIRouter()
for module in (predict, explain, report, metrics, model, health, inference_protocol, page):
    router.include_router(module.router)
