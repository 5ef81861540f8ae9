"""Answers of a server, read up to a limit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel
from pydantic_core import from_json

from .errors import InvalidAnswerError, printable

MAX_ANSWER_BYTES = 4 * 1024 * 1024  # a hundred times a report
# JSON values in an answer. Each may become a kilobyte of objects and of error messages, so the number of bytes alone
# does not bound the memory. A report has 1200 values, a batch of 32 images with all ten classes 1700.
MAX_VALUES = 20_000

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Answer:
    status: int
    reason: str
    headers: httpx.Headers
    content: bytes


class AnswerReader:
    """Collects the body of a response. Raises InvalidAnswerError for more than `max_bytes`, and for compression."""

    def __init__(self, response: httpx.Response, max_bytes: int) -> None:
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise InvalidAnswerError(f"the answer is compressed, which was not asked for: {printable(encoding)}")
        self._response = response
        self._max_bytes = max_bytes
        self._content = bytearray()

    def add(self, chunk: bytes) -> None:
        self._content += chunk
        if len(self._content) > self._max_bytes:
            raise InvalidAnswerError(f"the answer has more than {self._max_bytes} bytes (max_answer_bytes)")

    def answer(self) -> Answer:
        response = self._response
        return Answer(response.status_code, response.reason_phrase, response.headers, bytes(self._content))


def parsed(model: type[M]) -> Callable[[Answer], M]:
    """A function that parses an answer's JSON as the model. It raises ValueError, such as pydantic's."""
    return lambda answer: model.model_validate_json(_bounded(answer.content))


def problem_document(answer: Answer) -> dict[str, Any]:
    """The problem document of an error; if a proxy sent something else, a document with the first 200 characters."""
    try:
        document = from_json(_bounded(answer.content))
    except ValueError:
        document = None
    if isinstance(document, dict) and "code" in document:
        return document
    # The charset that the answer names is ignored: Python has some that unpack archives.
    text = answer.content[:1000].decode(errors="replace")[:200]
    return {"code": "http_error", "title": answer.reason, "detail": text}


def _bounded(content: bytes) -> bytes:
    """The content unchanged. Raises ValueError if it has more than MAX_VALUES JSON values."""
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ValueError(f"the answer has more than {MAX_VALUES} JSON values")
    return content
