"""The one place that turns an error into an answer: RFC 9457 problem documents.

`error` repeats `detail` for Open Inference Protocol clients.
"""

import http
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import (
    ClientGone,
    Internal,
    InvalidParameter,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    Problem,
)
from .middleware.prefix import prefix_of
from .schemas import ProblemDocument

logger = logging.getLogger("app")


def problem_document(problem: Problem, request_id: str, prefix: str) -> ProblemDocument:
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
    return JSONResponse(
        problem_document(problem, request_id, prefix).model_dump() | problem.members,
        status_code=problem.status,
        headers=problem.headers,
        media_type="application/problem+json",
    )


def as_problem(error: Exception) -> Problem:
    """The problem that an exception stands for; what nobody foresaw is an Internal."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ClientDisconnect):
        return ClientGone("the client left while it was sending")
    if isinstance(error, RequestValidationError):
        return InvalidParameter(_say(error))
    if isinstance(error, HTTPException):
        return _from_http(error)
    return Internal("the service met an error that is its own; the log has it under this request's id")


def answer(error: Exception, scope: Scope) -> Response:
    """The response to an error; a bug is logged, and the outcome noted for telemetry."""
    problem = as_problem(error)
    state = scope.setdefault("state", {})
    if isinstance(problem, Internal):
        logger.error("unhandled error", exc_info=error, extra={"fields": {"request_id": state.get("request_id")}})
    state["outcome"] = problem.code
    return problem_response(problem, state.get("request_id", ""), prefix_of(scope))


def install(app: FastAPI) -> None:
    """Answer with problem documents what routes and routing raise."""

    async def handle(request: Request, error: Exception) -> Response:
        return answer(error, request.scope)

    for kind in (Problem, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)


class ProblemMiddleware:
    """Answers with problem documents what other middleware raises, and whatever nobody foresaw."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            response = answer(error, scope)
            if started:
                raise  # half an answer is out: all that is left is to break the connection
            await response(scope, receive, send)


def _say(error: RequestValidationError) -> str:
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"] if part not in ("query", "body", "path", "header"))
        parts.append(f"{where or 'request'}: {item['msg']}{_given(item)}")
    return "; ".join(parts)


def _given(item: Mapping[str, Any]) -> str:
    value = item.get("input")
    return f" (given: {value[:40]!r})" if isinstance(value, str) else ""


def _from_http(error: HTTPException) -> Problem:
    """Starlette's own errors: routing (404, 405) and the multipart parser (400)."""
    for kind in (NotFound, MethodNotAllowed, MalformedRequest):
        if kind.status == error.status_code:
            default = error.detail == http.HTTPStatus(error.status_code).phrase
            return kind(kind.title if default else error.detail, error.headers)
    return Internal(f"unexpected status {error.status_code}")
