"""The service's command line.

python -m app serve        # what a bare `python -m app` does too
"""

import signal
import sys

import typer
import uvicorn
from pydantic import ValidationError

from app.bundle import BundleError
from app.main import create_app
from app.sessions import SessionError, load_session
from app.settings import Settings
from app.telemetry import configure_logging

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class StartupError(Exception):
    """The service cannot start; the message is one line for the operator."""


@cli.callback(invoke_without_command=True)
def bare(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        serve()


@cli.command()
def serve() -> None:
    """Serve the bundle over HTTP until SIGTERM; every setting is an environment variable."""
    try:
        settings = Settings()
        loaded = load_session(settings)
    except ValidationError as error:
        raise StartupError(_say(error)) from None
    except (BundleError, SessionError) as error:
        raise StartupError(str(error)) from None
    configure_logging(settings.log_level)
    app = create_app(settings, loaded)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        )
    )
    # uvicorn shuts down in order and then raises the signal again, which would end the process as if it had not.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    server.run()
    service = getattr(app.state, "service", None)
    if service is None or service.engine.died:
        sys.exit(1)


def _say(error: ValidationError) -> str:
    parts = (f"{'.'.join(str(part) for part in item['loc']).upper()}: {item['msg']}" for item in error.errors())
    return "; ".join(parts)


def main() -> None:
    try:
        cli()
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
