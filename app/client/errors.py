"""The errors of the client, and httpx's errors as errors of the client."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .http import httpx


class ClientError(Exception):
    """The base of every error of a call, but for wrong arguments."""


class EmptyBatchError(ClientError, ValueError):
    """The batch has no image. Nothing was sent."""


class ProblemError(ClientError):
    """The service, or a proxy, answered with an error.

    status, code, title, detail, instance      from the problem document; `document` is the whole document

    The server chose these texts: they have any length and any characters. str() is one printable line.
    """

    def __init__(self, status: int, document: dict[str, Any]) -> None:
        self.status = status
        self.document = document
        self.code = str(document.get("code", ""))
        self.title = str(document.get("title", ""))
        self.detail = str(document.get("detail", ""))
        self.instance = str(document.get("instance", ""))
        super().__init__(status, document)  # pickle calls the class with these arguments

    def __str__(self) -> str:
        return printable(f"{self.status} {self.code}: {self.detail} (request {self.instance})")


class NoAnswerError(ClientError, httpx.TransportError):
    """No whole answer arrived: the server cannot be reached, closed the connection, or does not speak HTTP."""


class AnswerTimeoutError(NoAnswerError, httpx.TimeoutException):
    """No whole answer arrived in time. The service may have done the work all the same."""


class InvalidAnswerError(ClientError):
    """The service gives no such answer: it is too large, compressed, not JSON, or lacks a field or header."""


@contextmanager
def client_errors(request: httpx.Request) -> Iterator[None]:
    """Raises the errors of httpx, and the timeout of asyncio, as a ClientError."""
    try:
        yield
    except ClientError:
        raise
    except (httpx.TimeoutException, TimeoutError) as error:
        raise AnswerTimeoutError(_reason(error, "no whole answer in time"), request=request) from error
    except httpx.TransportError as error:
        raise NoAnswerError(_reason(error, "the connection failed"), request=request) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # a header: a redirect, a cookie or a date
        raise InvalidAnswerError(_reason(error, "the answer's headers make no sense")) from error


def _reason(error: Exception, otherwise: str) -> str:
    return printable(str(error)) or otherwise


def printable(text: str) -> str:
    """A server's text as one printable line of at most 500 characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:500])[:500]
