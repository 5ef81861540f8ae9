import asyncio
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from app.api.middleware.problem_documents import ProblemDocuments
from app.api.problems import as_problem
from app.errors import BY_CODE, ClientGone, Internal, MethodNotAllowed, NotFound, Problem, Unavailable

DESIGN = {
    "malformed_request": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "load_in_progress": 409,
    "load_failed": 409,
    "payload_too_large": 413,
    "image_too_large": 413,
    "unsupported_media_type": 415,
    "undecodable_image": 422,
    "too_expensive": 422,
    "invalid_parameter": 422,
    "invalid_batch": 422,
    "overloaded": 429,
    "client_gone": 499,
    "internal": 500,
    "unavailable": 503,
    "deadline_exceeded": 504,
}


def test_codes_and_statuses_are_the_documented_ones() -> None:
    assert {code: kind.status for code, kind in BY_CODE.items()} == DESIGN


def test_every_kind_is_in_the_tree_and_explains_itself() -> None:
    import app.errors

    for kind in BY_CODE.values():
        assert f"── {kind.__name__} " in app.errors.__doc__
        assert kind.__doc__
        assert kind.title


def test_a_problem_is_not_converted() -> None:
    problem = NotFound("nothing")
    assert as_problem(problem) is problem
    assert str(problem) == "nothing"


def test_errors_of_the_framework_are_mapped() -> None:
    assert isinstance(as_problem(HTTPException(404)), NotFound)
    assert as_problem(HTTPException(404)).detail == NotFound.title
    assert isinstance(as_problem(HTTPException(405, headers={"Allow": "GET"})), MethodNotAllowed)
    assert as_problem(HTTPException(405, headers={"Allow": "GET"})).headers == {"Allow": "GET"}
    assert as_problem(HTTPException(400, "the boundary is missing")).detail == "the boundary is missing"
    assert isinstance(as_problem(HTTPException(418)), Internal)
    assert isinstance(as_problem(ClientDisconnect()), ClientGone)
    short = as_problem(MemoryError())
    assert isinstance(short, Unavailable) and "memory" in short.detail
    assert isinstance(as_problem(ZeroDivisionError()), Internal)


def test_every_kind_can_be_raised_with_a_detail_alone() -> None:
    for kind in BY_CODE.values():
        problem: Problem = kind("because")
        assert problem.detail == "because"


def test_an_error_after_half_an_answer_breaks_the_connection() -> None:
    app = FastAPI()

    @app.get("/")
    async def half() -> StreamingResponse:
        async def body():
            yield b"half"
            raise RuntimeError("broken")

        return StreamingResponse(body())

    app.add_middleware(ProblemDocuments)
    with pytest.raises(RuntimeError, match="broken"), TestClient(app) as client:
        client.get("/")


async def test_a_request_that_is_cut_off_at_the_end_of_the_drain_gets_a_problem_document() -> None:
    begun, sent = asyncio.Event(), []

    async def endless(*_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def send(message: dict) -> None:
        sent.append(message)

    for draining in (True, False):
        begun.clear()
        sent.clear()
        state = SimpleNamespace(service=SimpleNamespace(draining=draining))
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "app": SimpleNamespace(state=state)}
        task = asyncio.create_task(ProblemDocuments(endless)(scope, None, send))
        await begun.wait()
        task.cancel()
        await asyncio.wait({task})
        assert [message["status"] for message in sent if "status" in message] == ([503] if draining else [])
        assert task.cancelled() != draining
