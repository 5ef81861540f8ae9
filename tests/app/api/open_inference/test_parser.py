import asyncio
import gc
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.api.open_inference import parser as parsers
from app.api.open_inference.models import ServedModel
from app.api.open_inference.parser import Parser
from app.api.open_inference.requests import InferenceRequest, parse
from app.errors import DeadlineExceeded, MalformedRequest, Problem, TooExpensive, Unavailable
from tests.app.api.open_inference.test_requests import (
    IMAGE,
    binary,
    elements,
    file_tensor,
    images,
    message,
    tensor,
)
from tests.benchmarks.faults import v2_attacks

FAR = 60.0


@pytest.fixture(scope="module")
def parser() -> Iterator[Parser]:
    parser = Parser()
    yield parser
    parser.close()


@pytest.fixture(autouse=True)
def all_json_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsers, "LARGE_JSON_BYTES", 0)


def outcome(call: object) -> object:
    """What a request says, or why it is refused."""
    try:
        request = call()
    except Problem as problem:
        return (problem.code, problem.detail)
    assert isinstance(request, InferenceRequest)
    found = request.images if isinstance(request.images, list) else request.images.tolist()
    return (request.id, found, request.classes, request.binary, request.kind)


def in_process(
    parser: Parser, body: bytearray, length: int | None, model: ServedModel, seconds: float = FAR
) -> InferenceRequest:
    return asyncio.run(parser.parse(body, length, model, time.monotonic() + seconds))


def pixel_messages() -> Iterator[tuple[bytearray, int | None]]:
    yield message([tensor(2, data=images(2).tolist())], id="\U0001f408\0", outputs=[{"name": "probabilities"}])
    yield message([tensor(2, **binary(2 * IMAGE))], images(2).tobytes())
    yield message([tensor(2, **binary(IMAGE))], images(2).tobytes())
    yield message([tensor(data=[0.5] * IMAGE)])
    yield message([tensor(data=[256] * IMAGE)])
    yield message([tensor(shape=["1"], data=[0])])
    yield message([], x={"y": []})
    yield bytearray(b"\xff\xfe"), None
    yield bytearray(b"\xef\xbb\xbf" + message([tensor(data=[1] * IMAGE)])[0]), None
    yield message([tensor(shape=[1, 224, 224, 3], data=[255] * 150_528)])
    yield bytearray(b'{"a":"\\ud800"}'), None
    yield bytearray(b'{"inputs": NaN}'), None
    for _, body in v2_attacks.pixel_bodies():
        if len(body) < 2_000_000:
            yield bytearray(body), None


def file_messages() -> Iterator[tuple[bytearray, int | None]]:
    yield message([file_tensor(2, data=["QUJD", "QUI="])], id=None)
    yield message([file_tensor(data=["QUJD"])], parameters={"kind": "photographs"})
    yield message([file_tensor(data=["QUJ"])])
    yield message([file_tensor(data=["Q\u00e9=="])])
    yield message([file_tensor(2, **binary(12))], elements(b"abc", b"d"))
    yield message([file_tensor(data=[""])])
    for wrong in ("QU\nJD", "data:image/png;base64,QUJD", "QUJ_"):
        yield message([file_tensor(data=[wrong])])
    yield message([file_tensor(data=["QU-JD"])])[0].replace(b"-", b"\n"), None


@pytest.mark.parametrize("source", ["pixels", "files"])
def test_the_process_parses_as_the_service_would(
    parser: Parser, pixels: ServedModel, files: ServedModel, source: str
) -> None:
    model, bodies = (pixels, pixel_messages()) if source == "pixels" else (files, file_messages())
    for body, length in bodies:
        expected = outcome(lambda body=body, length=length: parse(bytearray(body), length, model))
        assert outcome(lambda body=body, length=length: in_process(parser, body, length, model)) == expected


def test_the_process_survives_any_json(parser: Parser, pixels: ServedModel) -> None:
    """Nothing that parsing needs is loaded when the sandbox is closed already."""
    for seed in range(60):
        value = _random(np.random.default_rng(seed))
        body = bytearray(json.dumps({"inputs": [tensor(data=value)], "x": value}).encode())
        expected = outcome(lambda body=body: parse(bytearray(body), None, pixels))
        assert outcome(lambda body=body: in_process(parser, body, None, pixels)) == expected
    assert parser._process and Path(f"/proc/{parser._process.pid}").exists()


def test_it_parses_in_one_confined_process_of_low_priority(parser: Parser, pixels: ServedModel) -> None:
    in_process(parser, *message([tensor(data=[0] * IMAGE)]), pixels)
    first = parser._process
    in_process(parser, *message([tensor(data=[0] * IMAGE)]), pixels)
    assert first and parser._process is first
    assert first.restrictions == {"landlock", "seccomp"}
    arguments = Path(f"/proc/{first.pid}/cmdline").read_bytes().split(b"\0")
    assert b"app.api.open_inference.parser_worker" in arguments
    assert "API_KEYS" not in Path(f"/proc/{first.pid}/environ").read_text()


@pytest.mark.parametrize(
    ("limit", "value", "what"), [("CPU_SECONDS", 0.001, "processor time"), ("MEMORY_BYTES", 1 << 17, "memory")]
)
def test_a_message_over_its_limits_is_too_expensive_and_others_go_on(
    pixels: ServedModel, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, what: str
) -> None:
    parser = Parser()
    body, _ = message([tensor(32, data=images(32).tolist())])
    with monkeypatch.context() as patch:
        patch.setattr(parsers, limit, value)
        with pytest.raises(TooExpensive, match=f"^parsing the JSON takes more {what} than is allowed$"):
            in_process(parser, body, None, pixels)
    assert len(in_process(parser, body, None, pixels).images) == 32
    parser.close()


def test_where_no_process_starts_a_thread_parses(
    pixels: ServedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(parsers, "SandboxedProcess", refuse)
    parser = Parser()
    assert len(in_process(parser, *message([tensor(2, data=images(2).tolist())]), pixels).images) == 2
    in_process(parser, *message([tensor(data=[0] * IMAGE)]), pixels)
    assert caplog.text.count("no more processes") == 1  # the next start is tried a minute later
    parser.close()


def test_clients_take_turns(pixels: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    order, begin = [], threading.Event()

    def parse_here(text: bytes, _: int, __: object) -> object:
        assert begin.wait(30)
        order.append(json.loads(text)["id"])
        raise MalformedRequest("read")

    monkeypatch.setattr(parsers, "_start", lambda: None)
    monkeypatch.setattr(parsers, "read_json", parse_here)
    parser = Parser()

    async def ask() -> None:
        asked = []
        for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
            body = bytearray(json.dumps({"id": name}).encode())
            asked.append(asyncio.create_task(parser.parse(body, None, pixels, time.monotonic() + FAR, name[0])))
            await asyncio.sleep(0)
        begin.set()
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(ask())
    parser.close()
    assert order[0] == "a1" and order.index("b1") < order.index("a3") and order.index("c1") < order.index("a3")
    assert sorted(order) == ["a1", "a2", "a3", "b1", "b2", "c1"]


def test_an_idle_process_ends_and_another_starts_when_needed(pixels: ServedModel) -> None:
    parser = Parser(idle_seconds=0.05)
    one = message([tensor(data=[0] * IMAGE)])
    in_process(parser, *one, pixels)
    end = time.monotonic() + 30
    while parser._process:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert len(in_process(parser, *one, pixels).images) == 1
    parser.close()
    assert parser._process is None


def test_a_process_that_dies_while_idle_is_replaced_and_no_message_is_refused(pixels: ServedModel) -> None:
    parser = Parser()
    one = message([tensor(data=[0] * IMAGE)])
    in_process(parser, *one, pixels)
    first = parser._process
    assert first
    first._process.kill()
    first._process.wait()
    assert len(in_process(parser, *one, pixels).images) == 1
    assert parser._process is not first
    parser.close()


def test_an_answer_that_breaks_the_protocol_ends_the_process(
    pixels: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nonsense(*_: object) -> None:
        raise ValueError("no JSON object")

    parser = Parser()
    one = message([tensor(data=[0] * IMAGE)])
    with monkeypatch.context() as patch:
        patch.setattr(parsers, "_message", nonsense)
        with pytest.raises(MalformedRequest, match="crash"):
            in_process(parser, *one, pixels)
    assert parser._process is None
    assert len(in_process(parser, *one, pixels).images) == 1
    parser.close()


def test_an_answer_that_was_not_read_is_not_given_to_the_next_message(
    parser: Parser, pixels: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when there is no memory to read it."""

    def fail(*_: object, **__: object) -> bytes:
        raise MemoryError

    first, second = (message([tensor(data=[value] * IMAGE)], id=str(value)) for value in (1, 2))
    in_process(parser, *first, pixels)  # starts the process
    with monkeypatch.context() as patch:
        patch.setattr(parsers.SandboxedProcess, "answer", fail)
        with pytest.raises(MemoryError):
            in_process(parser, *first, pixels)
    assert in_process(parser, *second, pixels).id == "2"


def test_at_the_deadline_the_message_is_forgotten(pixels: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = Parser()
    monkeypatch.setattr(parsers, "_start", lambda: time.sleep(0.5))
    first, second = (message([tensor(data=[0] * IMAGE)])[0] for _ in range(2))

    async def both() -> list[object]:
        asked = (parser.parse(body, None, pixels, time.monotonic() + 0.1) for body in (first, second))
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [type(error) for error in asyncio.run(both())] == [DeadlineExceeded] * 2
    gc.collect()
    second.clear()  # no view of the waiting message is left
    parser.close()


def test_closing_fails_what_is_being_parsed(pixels: ServedModel) -> None:
    parser = Parser()
    body, _ = message([tensor(32, data=images(32).tolist())])
    in_process(parser, bytearray(body), None, pixels)

    async def close_while_parsing() -> None:
        assert parser._process
        parser._process._process.send_signal(19)  # SIGSTOP: it never answers
        parsing = asyncio.create_task(parser.parse(body, None, pixels, time.monotonic() + FAR))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(parser.close)
        with pytest.raises(Unavailable):
            await parsing

    asyncio.run(close_while_parsing())


def _random(random: np.random.Generator, depth: int = 0) -> object:
    """A random JSON value."""
    plain = [
        None,
        True,
        float(random.normal() * 10.0 ** random.integers(-300, 300)),
        "\u00e9\ud83d\ude00\x00" * 3,
        2**80,
    ]
    kind = int(random.integers(0, 7 if depth < 4 else 5))
    if kind < 5:
        return plain[kind]
    inner = [_random(random, depth + 1) for _ in range(int(random.integers(0, 4)))]
    return inner if kind == 5 else {f"k{index}\n": value for index, value in enumerate(inner)}
