"""Requests to a sandboxed process, and its answers.

conversation.send(header, content)
content = conversation.answer(THUMBNAILS, most=3072, problems=(UndecodableImage,))
"""

import json
import signal
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable

from ..errors import Problem
from .channel import ANSWER, LONGEST_PROBLEM, OUT_OF_MEMORY, PROBLEM, receive

READ_BYTES = 1 << 16  # most answers come whole
# "killed": by something else, as Linux does when the machine or the container runs out of memory.
REASONS = ("cpu", "memory", "time", "crash", "killed")


class ProcessEnded(Exception):
    """The process has ended while it had a request; `reason` is one of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def exceeded(self) -> str | None:
        """What the request took more of than is allowed; None if it was something else."""
        return {"cpu": "processor time", "memory": "memory", "time": "time"}.get(self.reason)


def reason_of(exit_code: int) -> str:
    """Why a process has ended that the service did not end, one of REASONS; a signal's code is negative."""
    return {-signal.SIGPROF: "cpu", OUT_OF_MEMORY: "memory", -signal.SIGKILL: "killed"}.get(exit_code, "crash")


class Conversation(ABC):
    """`channel`: the service's end of the process's socket. One thread at a time may use it."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._ahead = b""  # what came after an answer and belongs to the next one

    def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Raises ProcessEnded."""
        try:
            sent = self._channel.sendmsg(parts)  # one call for all: each waits for the interpreter's lock afterwards
            for part in parts:
                if sent < len(part):
                    self._channel.sendall(memoryview(part)[sent:])
                sent = max(0, sent - len(part))
        except OSError as error:
            raise self.failed(error) from None

    def answer(self, kind: int, *, most: int, problems: Iterable[type[Problem]] = ()) -> bytes:
        """The content of the answer, which is of this kind and has at most `most` bytes.

        Raises one of `problems` if the process answers with it, and ProcessEnded if it answers with anything else.
        """
        try:
            given, size = ANSWER.unpack(self._receive(ANSWER.size))
            if given not in (PROBLEM, kind) or size > (LONGEST_PROBLEM if given == PROBLEM else most):
                raise ValueError("a sandboxed process answers with something else")
            content = self._receive(size)
            if given == PROBLEM:
                code, detail = json.loads(content)
                problem = {kind.code: kind for kind in problems}[code](str(detail))
        except (OSError, EOFError, ValueError, KeyError, TypeError, struct.error) as error:
            raise self.failed(error) from None
        if given == PROBLEM:
            raise problem
        return content

    def _receive(self, size: int) -> bytes:
        """Exactly `size` bytes; empty if the channel was closed before the first one. Raises what `receive` raises."""
        if len(self._ahead) < size:
            self._ahead += self._channel.recv(READ_BYTES)
        found, self._ahead = self._ahead[:size], self._ahead[size:]
        if not found or len(found) == size:
            return found
        rest = receive(self._channel, size - len(found))
        if not rest:
            raise EOFError
        return found + rest

    @abstractmethod
    def failed(self, error: Exception) -> ProcessEnded:
        """What is to be raised after an error of the channel, or an answer that is none."""
