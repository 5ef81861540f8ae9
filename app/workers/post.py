"""Messages between the supervisor and the workers: JSON, one datagram each.

    post = Post(workers=2)                      # before the workers are forked
    end = Correspondent(post, own=0)            # in worker 0
    end.on("double", lambda number: 2 * number)
    end.open()                                  # reads in the running event loop
    await end.ask([1], "double", 21, seconds=1)     # {1: 42}, or {} if worker 1 does not answer in time

A message that does not fit into the queue of its reader is lost, as if the reader had ended.
"""

import asyncio
import itertools
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

LONGEST = 1 << 16  # bytes
ANSWER = "answer"
Handler: TypeAlias = Callable[[Any], Any]
logger = logging.getLogger("app.workers")


class Post:
    """A box for each worker, and the last for the supervisor. Each process has all of them."""

    def __init__(self, workers: int) -> None:
        self._boxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(workers + 1)]
        for box in self._boxes:
            for end in box:
                end.setblocking(False)
        self.supervisor = workers

    def send(self, to: int, kind: str, content: Any, sender: int, number: int = 0) -> bool:
        """Returns whether it was sent."""
        message = json.dumps({"kind": kind, "content": content, "from": sender, "number": number}).encode()
        try:
            self._boxes[to][1].send(message)
        except OSError:  # the queue is full, or the message too long
            return False
        return True

    def receive(self, own: int) -> dict[str, Any] | None:
        """The next message in a box; None if there is none."""
        try:
            message: dict[str, Any] = json.loads(self._boxes[own][0].recv(LONGEST))
        except BlockingIOError:
            return None
        return message

    def box(self, own: int) -> socket.socket:
        """To wait for messages."""
        return self._boxes[own][0]

    def close(self) -> None:
        for box in self._boxes:
            for end in box:
                end.close()


class Correspondent:
    """One process's end of the post. For one event loop."""

    def __init__(self, post: Post, own: int) -> None:
        self._post = post
        self._own = own
        self._handlers: dict[str, Handler] = {}
        self._numbers = itertools.count(time.monotonic_ns())  # none that a process before this one used
        self._asked: dict[int, tuple[set[int], dict[int, Any], asyncio.Event]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def supervisor(self) -> int:
        return self._post.supervisor

    def on(self, kind: str, handler: Handler) -> None:
        """Let the handler answer messages of this kind. It gets their content; it may be asynchronous."""
        self._handlers[kind] = handler

    def open(self) -> None:
        asyncio.get_running_loop().add_reader(self._post.box(self._own).fileno(), self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._post.box(self._own).fileno())

    def tell(self, to: int, kind: str, content: Any = None) -> None:
        self._post.send(to, kind, content, self._own)

    async def ask(self, to: Iterable[int], kind: str, content: Any, seconds: float) -> dict[int, Any]:
        """The answers of those who answer within that time."""
        number = next(self._numbers)
        waiting: set[int] = set()
        answers: dict[int, Any] = {}
        complete = asyncio.Event()
        self._asked[number] = waiting, answers, complete
        try:
            for other in to:
                if self._post.send(other, kind, content, self._own, number):
                    waiting.add(other)
            if waiting:
                async with asyncio.timeout(seconds):
                    await complete.wait()
        except TimeoutError:
            pass
        finally:
            del self._asked[number]
        return answers

    def _read(self) -> None:
        while message := self._post.receive(self._own):
            sender, number = message["from"], message["number"]
            if message["kind"] == ANSWER:
                self._take(sender, number, message["content"])
            elif handler := self._handlers.get(message["kind"]):
                self._handle(handler, message["content"], sender, number)

    def _take(self, sender: int, number: int, content: Any) -> None:
        if number in self._asked:
            waiting, answers, complete = self._asked[number]
            answers[sender] = content
            waiting.discard(sender)
            if not waiting:
                complete.set()

    def _handle(self, handler: Handler, content: Any, sender: int, number: int) -> None:
        try:
            given = handler(content)
        except Exception:
            logger.exception("a message met a bug")
            return
        if asyncio.iscoroutine(given):
            task = asyncio.get_running_loop().create_task(self._answer_later(given, sender, number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif number:
            self._post.send(sender, ANSWER, given, self._own, number)

    async def _answer_later(self, given: Awaitable[Any], sender: int, number: int) -> None:
        try:
            content = await given
        except Exception:
            logger.exception("a message met a bug")
            return
        if number:
            self._post.send(sender, ANSWER, content, self._own, number)
