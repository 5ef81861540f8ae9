"""Parses the JSON of inference requests. A hostile message cannot delay the event loop.

    parser = Parser()
    request = await parser.parse(body, header_length, model, deadline, client)     # MalformedRequest, TooExpensive, ...
    parser.close()

A parser of JSON keeps the interpreter's lock from the first byte to the last, so that probes wait for it. Small JSON is
parsed at once, larger JSON in a sandboxed process, one message at a time; clients take turns. The process starts when
it is needed, and it ends after IDLE_SECONDS without work. Where no process can be started, a thread of the service
parses, and another start is tried after IDLE_SECONDS.
"""

import asyncio
import json
import logging
import struct
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from itertools import accumulate, pairwise

import numpy as np

from ...errors import DeadlineExceeded, MalformedRequest, Problem, TooExpensive, Unavailable, forget_tracebacks
from ...sandbox.conversation import ProcessEnded
from ...sandbox.process import SandboxedProcess
from .parser_protocol import HEAD, MESSAGE, PIXELS, REQUEST
from .requests import InferenceRequest, Message, raw_request, read_json, split, with_tail
from .tensors import Signature

LARGE_JSON_BYTES = 16 * 1024  # more takes over a millisecond to parse
CPU_SECONDS = 2.0  # of one message; 32 MB of base64 take 0.5 s
MEMORY_BYTES = 256 << 20
SILENCE_SECONDS = 20.0  # wall-clock time of one message on a busy machine
IDLE_SECONDS = 60.0
SHUTTING_DOWN = "the service is shutting down"
logger = logging.getLogger("app.parser")


@dataclass
class _Job:
    text: memoryview
    rest: int
    model: Signature
    client: str
    result: Future[Message] = field(default_factory=Future)


class _Queue:
    """Messages that wait. Clients take turns."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[_Job]] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: _Job) -> None:
        """Raises Unavailable when the queue is closed."""
        with self._changed:
            if self._closed:
                raise Unavailable(SHUTTING_DOWN)
            self._waiting.setdefault(job.client, deque()).append(job)
            self._changed.notify()

    def take(self, seconds: float | None) -> _Job | None:
        """The next message; None if there is none in that time, or when the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, seconds)
            if not self._waiting:
                return None
            client = next(iter(self._waiting))
            jobs = self._waiting.pop(client)
            job = jobs.popleft()
            if jobs:
                self._waiting[client] = jobs  # the client goes to the end
            return job

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    @property
    def closed(self) -> bool:
        return self._closed


class Parser:
    """For any event loop; `close` it when done."""

    def __init__(self, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._queue = _Queue()
        self._process: SandboxedProcess | None = None
        self._start_again = 0.0  # not before this time of time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="message-parser", daemon=True)
        self._thread.start()

    async def parse(
        self, body: bytearray, header_length: int | None, model: Signature, deadline: float, client: str = ""
    ) -> InferenceRequest:
        """See app.api.open_inference.requests.parse. `deadline` is in seconds of time.monotonic().

        `client` is an address; the clients' messages take turns.

        Raises MalformedRequest, TooExpensive, DeadlineExceeded or Unavailable.
        """
        if header_length == 0:
            return raw_request(body, model)
        text, tail = split(body, header_length)
        if len(text) <= LARGE_JSON_BYTES:
            return with_tail(read_json(bytes(text), len(tail), model), tail, model)
        job = _Job(text, len(tail), model, client)
        self._queue.put(job)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return with_tail(await asyncio.wrap_future(job.result), tail, model)
        except TimeoutError:
            raise DeadlineExceeded("no answer within the deadline: the JSON was not parsed in time") from None
        finally:
            if job.result.cancel():
                text.release()  # the body's memory, although the job may wait for a while
            del job  # see forget_tracebacks

    def close(self) -> None:
        """Kill the process. Messages that wait or are being parsed get Unavailable."""
        self._queue.close()
        if process := self._process:
            process.end()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            job = self._queue.take(self._idle_seconds if self._process else None)
            if job is None:
                self._end()
                if self._queue.closed:
                    return
                continue
            if job.result.set_running_or_notify_cancel():
                self._answer(job)
            del job  # an idle thread keeps no message

    def _answer(self, job: _Job) -> None:
        try:
            if self._queue.closed:
                raise Unavailable(SHUTTING_DOWN)
            if self._process and not self._process.alive:
                self._end()
            if not self._process and time.monotonic() >= self._start_again:
                self._process = _start()
                self._start_again = time.monotonic() + self._idle_seconds if not self._process else 0.0
            parsed = self._process_parses(job) if self._process else read_json(bytes(job.text), job.rest, job.model)
            job.result.set_result(parsed)
        except Problem as problem:
            forget_tracebacks(problem)
            job.result.set_exception(problem)
        except Exception as error:  # a bug, or no memory: what the process says next may be about this message
            self._end()
            job.result.set_exception(error)

    def _process_parses(self, job: _Job) -> Message:
        assert self._process
        signature = json.dumps(asdict(Signature(job.model.input, job.model.output, job.model.max_batch_size))).encode()
        try:
            self._process.send(REQUEST.pack(len(job.text), len(signature), job.rest), job.text, signature)
            # base64 is longer than what it holds
            content = self._process.answer(
                MESSAGE, most=HEAD.size + len(job.text) + 4096, problems=(MalformedRequest, TooExpensive)
            )
            try:
                return _message(content, job.model)
            except (ValueError, KeyError, TypeError, struct.error) as error:  # no answer of the protocol
                raise self._process.failed(error) from None
        except ProcessEnded as ended:
            self._end()
            if self._queue.closed:
                raise Unavailable(SHUTTING_DOWN) from None
            logger.warning("the process that parses JSON has ended: %s", ended.reason)
            if ended.reason == "killed":
                raise Unavailable(
                    "the process that parsed the JSON was killed, maybe for lack of memory: try again later"
                ) from None
            what = ended.exceeded
            if what is None:
                raise MalformedRequest("the JSON makes its parser crash") from None
            raise TooExpensive(f"parsing the JSON takes more {what} than is allowed") from None

    def _end(self) -> None:
        if self._process:
            self._process.end()
        self._process = None


def _start() -> SandboxedProcess | None:
    try:
        return SandboxedProcess(
            f"{__package__}.parser_worker", MEMORY_BYTES, CPU_SECONDS, silence_seconds=SILENCE_SECONDS
        )
    except (OSError, ProcessEnded) as error:
        logger.warning("no process for parsing JSON can be started: %s", error)
        return None


def _message(content: bytes, model: Signature) -> Message:
    """The message in an answer of the process."""
    (length,) = HEAD.unpack_from(content)
    head = json.loads(content[HEAD.size : HEAD.size + length])
    sizes = head.pop("sizes")
    if sizes is None:
        return Message(**head, images=None)
    start = HEAD.size + length
    if sizes == PIXELS:
        pixels = np.frombuffer(content, np.uint8, offset=start)
        return Message(**head, images=pixels.reshape(head["count"], *model.input.shape[1:]))
    ends = accumulate(sizes, initial=start)
    return Message(**head, images=[content[first:last] for first, last in pairwise(ends)])
