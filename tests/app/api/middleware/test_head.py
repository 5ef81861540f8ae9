"""HEAD wherever there is GET."""

import logging
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from app.api.middleware.head import Head
from tests.app.problems import assert_problem

OF_EACH_REQUEST = {"x-request-id", "traceparent"}
PAGES = ["/", "/docs", "/problems/overloaded", "/openapi.json", "/assets/web/main.js", "/v2/", "/nothing"]


def test_head_has_the_headers_of_get_and_no_body(client: TestClient) -> None:
    values = {"{picture}": "reliability", "{model}": "cifar10", "{version}": "1"}
    paths = [path for path, methods in client.get("/openapi.json").json()["paths"].items() if "get" in methods]
    assert len(paths) > 15
    for path in [*paths, *PAGES]:
        for template, value in values.items():
            path = path.replace(template, value)
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers.keys() == got.headers.keys(), path
        varying = OF_EACH_REQUEST | ({"content-length"} if path in ("/metrics", "/nothing") else set())
        for name in got.headers.keys() - varying:
            assert head.headers[name] == got.headers[name], (path, name)


def test_a_cached_answer_is_304(client: TestClient) -> None:
    etag = client.get("/metrics/report").headers["etag"]
    assert client.head("/metrics/report", headers={"If-None-Match": etag}).status_code == 304


def test_where_there_is_no_get_there_is_no_head(client: TestClient) -> None:
    refused = client.head("/predict")
    assert (refused.status_code, refused.headers["allow"], refused.content) == (405, "POST", b"")
    refused = client.post("/model")
    assert_problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "GET, HEAD"


def test_head_needs_a_key_where_get_does(make_client: Callable[..., TestClient]) -> None:
    guarded = make_client(api_keys="key")
    assert guarded.head("/model").status_code == 401
    assert guarded.head("/livez").status_code == 200


def test_head_is_logged_with_its_route(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "app.access"):
        client.head("/metrics/report/reliability.png")
    (record,) = caplog.records
    assert (record.fields["method"], record.fields["route"]) == ("HEAD", "/metrics/report/{picture}.png")


async def test_the_body_is_left_out_whatever_the_server_does() -> None:
    """The test client and uvicorn leave it out, too."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["method"] == "GET"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"bo", "more_body": True})
        await send({"type": "http.response.body", "body": b"dy"})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "HEAD"}
    await Head(app)(scope, receive, send)
    assert scope["method"] == "HEAD"
    assert [message.get("body", b"") for message in sent] == [b"", b"", b""]
    assert [message.get("more_body", False) for message in sent] == [False, True, False]
