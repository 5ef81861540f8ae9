"""OpenTelemetry (extra `otel`): a trace for each request, and metrics, sent as the standard variables OTEL_* say.

    telemetry = start(registry)     # None if no variable asks for it; then no package of the extra is imported
    telemetry.close()

FastAPI makes the span of a request and the metrics of HTTP; `api.middleware.tracing` adjusts it. Here are the
exporters, the spans of a request's stages, and the metrics that Prometheus gets.
"""

import os
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

if TYPE_CHECKING:
    from .pipeline import Telemetry

SIGNALS = ("traces", "metrics")
INSTANCE = "service.instance.id"
SCOPE = "cifar10-classifier"  # the name of the service, and of what measures in it


class TelemetryError(RuntimeError):
    """What OTEL_* asks for cannot be done. The message is one line for the operator."""


def asked_for(environment: Mapping[str, str]) -> dict[str, str]:
    """The signals to send, each with the variable that asks for it: an exporter, or an endpoint for OTLP."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return {}
    asked = {}
    for signal in SIGNALS:
        of_signal = signal.upper()
        exporter = f"OTEL_{of_signal}_EXPORTER"
        variables = (exporter, f"OTEL_EXPORTER_OTLP_{of_signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
        variable = next((name for name in variables if environment.get(name, "").strip()), None)
        if variable and environment.get(exporter, "").strip() != "none":
            asked[signal] = variable
    return asked


def with_instance(attributes: str) -> str:
    """OTEL_RESOURCE_ATTRIBUTES for one process of several: by its id a collector tells their counts apart."""
    others = [one for one in attributes.split(",") if one and not one.strip().startswith(INSTANCE)]
    return ",".join([*others, f"{INSTANCE}={uuid.uuid4()}"])


def start(registry: CollectorRegistry) -> "Telemetry | None":
    """Start what the environment asks for; None if that is nothing. Raises TelemetryError."""
    asked = asked_for(os.environ)
    if not asked:
        return None
    variable = next(iter(asked.values()))
    try:
        from .pipeline import Telemetry

        return Telemetry(asked, registry)
    except ImportError as error:
        raise TelemetryError(f"{variable} asks for OpenTelemetry, which needs the extra 'otel' ({error})") from None
    except TelemetryError:
        raise
    except Exception as error:  # of a variable that the SDK reads; it has no kind of error of its own
        raise TelemetryError(f"the variables OTEL_* cannot be used: {error or error.__class__.__name__}") from None
