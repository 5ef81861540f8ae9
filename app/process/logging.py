"""The process's log: one JSON object a line, on standard error."""

import asyncio
import json
import logging
import sys
import time
import warnings
from typing import Any


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            # The kind and the place of the error. Its values could be a client's data, so they stay out of the log.
            kind, _, trace = record.exc_info
            line["error"] = getattr(kind, "__name__", "")
            while trace is not None:
                line["at"] = f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}"
                trace = trace.tb_next
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: str) -> None:
    """Write logs and warnings as JSON lines on standard error. Our access log replaces uvicorn's."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("PIL").setLevel(logging.INFO)  # below that it quotes images
    warnings.showwarning = _log_warning


def _log_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    logging.getLogger("app").warning("%s: %s", category.__name__, message)


def log_stray_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's exception handler. asyncio's own would log paths of this machine."""
    message = context["message"].partition("\n")[0]
    logging.getLogger("app").error(message, exc_info=context.get("exception"))
