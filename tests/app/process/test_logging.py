import asyncio
import json
import logging
import sys
import warnings

import pytest

from app.process import logging as logs
from app.process.logging import JsonFormatter, configure_logging, log_stray_error


def test_a_log_line_is_one_json_object() -> None:
    record = logging.LogRecord("app", logging.INFO, "", 0, "two\nlines %s", ("é",), None)
    record.fields = {"status": 200}
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["message"], line["level"], line["status"]) == ("two\nlines é", "info", 200)


def test_a_logged_error_shows_its_place_but_no_value_or_path() -> None:
    try:
        raise ValueError("secret")
    except ValueError:
        record = logging.LogRecord("app", logging.ERROR, "", 0, "bad", (), sys.exc_info())
    text = JsonFormatter().format(record)
    assert json.loads(text)["error"] == "ValueError"
    assert json.loads(text)["at"].startswith(__name__)
    assert "secret" not in text
    assert "/" not in text


def test_logging_is_configured_once_for_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging("info")
        logging.getLogger("anything").info("hello")
        logging.getLogger("anything").debug("not this")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = logs._log_warning  # which pytest has replaced
            warnings.warn("odd", RuntimeWarning, stacklevel=1)
        hello, odd = (json.loads(line) for line in capsys.readouterr().err.splitlines())
        assert hello["message"] == "hello"
        assert odd["message"] == "RuntimeWarning: odd"
    finally:
        root.handlers[:], root.level = before, level
        logging.getLogger("uvicorn.access").disabled = False


async def test_a_stray_error_is_logged_without_files(caplog: pytest.LogCaptureFixture) -> None:
    async def stray() -> None:
        raise ValueError("secret")

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_stray_error)
    task = asyncio.create_task(stray())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
    (record,) = caplog.records
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "Task exception was never retrieved"
    assert line["error"] == "ValueError"
    assert "secret" not in str(line) and "/" not in str(line)
