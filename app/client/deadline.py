"""The deadline of one attempt.

deadline = Deadline(60)
client.build_request(..., extensions={"trace": deadline.watch})
deadline.start()                   # from now on every read and write on the connection ends with the deadline
"""

import math
import threading
import time
from collections.abc import Mapping
from typing import Any

from .errors import AnswerTimeoutError

DEADLINE_SECONDS = 60
WRITE_BYTES = 64 * 1024  # the clock is read before each piece of this size


def deadline_seconds(given: float | None, timeout: float | None) -> float:
    if given is not None:
        return given
    return math.inf if timeout is None else max(DEADLINE_SECONDS, timeout)


class Deadline(threading.local):
    """Ends an attempt of the sync client; each thread has its own.

    httpx limits each read and write alone, so a server that sends a byte now and then would hold a call for ever.
    The async client has asyncio.timeout. Here each read and write on the connection is cut short instead.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = math.inf

    def start(self) -> None:
        self._end = time.monotonic() + self._seconds

    def remaining(self) -> float:
        """Seconds until the deadline, more than 0. Raises AnswerTimeoutError."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise AnswerTimeoutError(f"no whole answer within {self._seconds:g} s")
        return seconds

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """The `trace` extension of httpx: it passes each new connection, which then keeps the deadline."""
        if not event.endswith((".connect_tcp.complete", ".connect_unix_socket.complete", ".start_tls.complete")):
            return
        stream = info["return_value"]
        read, write = stream.read, stream.write

        def read_in_time(max_bytes: int, timeout: float | None = None) -> bytes:
            content: bytes = read(max_bytes, self._shorter(timeout))
            return content

        def write_in_time(buffer: bytes, timeout: float | None = None) -> None:
            view = memoryview(buffer)
            for start in range(0, len(view), WRITE_BYTES):
                write(view[start : start + WRITE_BYTES], self._shorter(timeout))

        stream.read, stream.write = read_in_time, write_in_time

    def _shorter(self, timeout: float | None) -> float:
        remaining = self.remaining()
        return remaining if timeout is None else min(timeout, remaining)
