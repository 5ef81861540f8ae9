"""What `serve --help` says of the settings: names, meanings and defaults, from where they are defined."""

from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from .settings import ENV_FILE, Settings

NOTHING: tuple[object, ...] = (None, "", (), {})  # defaults of which the meaning speaks


def variables() -> Iterator[tuple[str, str]]:
    """Each environment variable, and what it means in a line."""
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default in NOTHING else f"  [default: {default}]"
        yield name.upper(), f"{field.description}{shown}"
    yield "OTEL_*", "Traces and metrics, by OpenTelemetry's own variables."


class ServeCommand(TyperCommand):
    """A command whose help ends with the settings."""

    # typer has click's formatter inside, but does not export its class.
    def format_epilog(self, _: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        with formatter.section(f"Environment variables, also read from {ENV_FILE}"):
            formatter.write_dl([*variables()])
        formatter.write_paragraph()
        formatter.write_text("docs/operations.md in the repository says more of each.")
