"""What a running service holds; routes take it from the application."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.bundle import Bundle
from app.classifier import Classifier
from app.engine import Engine
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


def _service(request: Request) -> ServiceState:
    return request.app.state.service  # type: ignore[no-any-return]


Service = Annotated[ServiceState, Depends(_service)]
