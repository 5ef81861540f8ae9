"""What a running service holds; routes take it from the application."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from app.bundle import Bundle
from app.classifier import Classifier
from app.engine import Engine
from app.protocol_models import ServedModel, served_models
from app.settings import Settings
from app.telemetry import Telemetry


@dataclass
class ServiceState:
    settings: Settings
    bundle: Bundle
    engine: Engine
    classifier: Classifier
    telemetry: Telemetry
    draining: bool = False
    models: dict[str, ServedModel] = field(init=False)  # as Open Inference Protocol clients know them

    def __post_init__(self) -> None:
        self.models = served_models(self.settings, self.bundle.manifest)


# Plain functions are called on a thread of FastAPI's pool; this one would spend more on the way there than at work.
async def _service(request: Request) -> ServiceState:
    return request.app.state.service  # type: ignore[no-any-return]


Service = Annotated[ServiceState, Depends(_service)]
