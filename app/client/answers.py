"""Answers of a server, read up to a limit."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from .errors import InvalidAnswerError, printable
from .http import httpx

MAX_ANSWER_BYTES = 4 * 1024 * 1024  # a hundred times a report
# JSON values in an answer. Each may become a kilobyte of objects and of error messages, so the number of bytes alone
# does not bound the memory. The description of a thousand classes has 9,000; longer answers are allowed more by call.
MAX_VALUES = 20_000
MAX_CELLS = 1_000_000  # of a confusion matrix: its numbers take little, and cannot be wrong
MATRIX = re.compile(rb'"confusion_matrix":\s*+\[\s*+\[[\d,\s]*+(?:\]\s*+,\s*+\[[\d,\s]*+)*+\]')

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


def parsed(model: type[M], more: int = 0) -> Callable[[Answer], M]:
    """A function that parses an answer's JSON as the model. It raises ValueError, such as pydantic's.

    Fields that the model does not have are left out, wherever they are: later services have more. The JSON may have
    MAX_VALUES and `more` values, beside the cells of a confusion matrix.
    """
    # Not model_validate_json: each of its errors keeps a copy of what is wrong, of a whole report perhaps.
    return lambda answer: model.model_validate(from_json(_bounded(answer.content, more)), extra="ignore")


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


def _bounded(content: bytes, more: int = 0) -> bytes:
    """The content unchanged. Raises ValueError if it has too many JSON values."""
    matrix = MATRIX.search(content)
    cells = min(matrix.group().count(b","), MAX_CELLS) if matrix else 0
    most = MAX_VALUES + more
    if sum(map(content.count, (b",", b"[", b"{"))) - cells > most:
        raise ValueError(f"the answer has more than {most} JSON values")
    return content
