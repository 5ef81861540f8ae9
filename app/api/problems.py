"""Errors as HTTP answers: problem documents (RFC 9457). All errors are answered here.

The member `error` repeats `detail` for clients of the Open Inference Protocol.
"""

import http
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from ..errors import (
    BY_CODE,
    ClientGone,
    Internal,
    InvalidParameter,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    Problem,
    Unavailable,
    forget_tracebacks,
)
from ..validation_errors import one_line
from .paths import prefix_of
from .request_context import context_of
from .schemas import ProblemDocument

logger = logging.getLogger("app")


PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": f"{'; '.join(kind.title for kind in BY_CODE.values() if kind.status == status)}.",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
    }
    for status in (400, 401, 408, 413, 415, 422, 429, 503, 504)
}
"""The problems that every route for images can answer, for the OpenAPI document."""


def problem_document(problem: Problem, request_id: str, prefix: str) -> ProblemDocument:
    """The problem document. `prefix` is the path under which a proxy serves the application, without a final slash."""
    return ProblemDocument(
        type=f"{prefix}/problems/{problem.code}",
        title=problem.title,
        status=problem.status,
        detail=problem.detail,
        code=problem.code,
        instance=request_id,
        error=problem.detail,
    )


def problem_response(problem: Problem, request_id: str, prefix: str) -> Response:
    """The HTTP response with the problem document and its extension members."""
    return JSONResponse(
        problem_document(problem, request_id, prefix).model_dump() | problem.members,
        status_code=problem.status,
        headers=problem.headers,
        media_type="application/problem+json",
    )


def as_problem(error: Exception) -> Problem:
    """The problem for an exception. An unexpected exception becomes Internal."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ClientDisconnect):
        return ClientGone("the client disconnected while it was sending")
    if isinstance(error, RequestValidationError):
        return InvalidParameter(_validation_message(error))
    if isinstance(error, HTTPException):
        return _from_http(error)
    if isinstance(error, MemoryError):
        return Unavailable("the service has too little memory now: try again later")
    return Internal("the service met a bug; its log has the cause under this request's id")


def answer(error: Exception, scope: Scope) -> Response:
    """The response to an error. It logs a bug, and sets the request's outcome for log and metrics."""
    problem = as_problem(error)
    context = context_of(scope)
    if isinstance(problem, Internal):
        logger.error("unhandled error", exc_info=error, extra={"fields": {"request_id": context.request_id}})
    context.outcome = problem.code
    forget_tracebacks(error)
    return problem_response(problem, context.request_id, prefix_of(scope))


def install(app: FastAPI) -> None:
    """Answer errors of routes and of routing with problem documents."""

    async def handle(request: Request, error: Exception) -> Response:
        return answer(error, request.scope)

    for kind in (Problem, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)


def _validation_message(error: RequestValidationError) -> str:
    """FastAPI's places begin with where a parameter is: in the query, the path or a header."""
    return one_line(({**item, "loc": item["loc"][1:]} for item in error.errors()), "request")


def _from_http(error: HTTPException) -> Problem:
    """The problem for Starlette's own errors, of routing (404, 405) and of the multipart parser (400)."""
    for kind in (NotFound, MethodNotAllowed, MalformedRequest):
        if kind.status == error.status_code:
            default = error.detail == http.HTTPStatus(error.status_code).phrase
            return kind(kind.title if default else error.detail, error.headers)
    return Internal(f"unexpected status {error.status_code}")
