"""The protocol between the service and a sandboxed process, over a socket.

The process sends READY when it starts, with the names of its optional restrictions. A request begins with a header of
fixed size, whose first field is the number of bytes that follow it. An answer is ANSWER, followed by as many bytes as
its size says. PROBLEM holds the code and the detail of an error of app.errors, as JSON.
"""

import json
import socket
import struct

from ..errors import Problem

ANSWER = struct.Struct(">BQ")  # kind, size
READY, PROBLEM, FIRST_OWN = range(3)  # kinds of answers; a protocol's own begin at FIRST_OWN
LONGEST_PROBLEM = 4096  # bytes
MOST_READY = 100  # bytes of the names
OUT_OF_MEMORY = 77  # the exit status of a process whose request took more memory than is allowed


def receive(channel: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; empty if the other side closed the socket before the first one.

    Raises EOFError if the socket closes after some of the bytes, and TimeoutError after its timeout.
    """
    # Without a timeout one call waits for all of it, into the object that is returned.
    content = channel.recv(size, socket.MSG_WAITALL) if size else b""
    if len(content) in (0, size):
        return content
    buffer = bytearray(size)
    buffer[: len(content)] = content
    view, filled = memoryview(buffer), len(content)
    while filled < size:
        count = channel.recv_into(view[filled:])
        if not count:
            raise EOFError
        filled += count
    return bytes(buffer)


def answer(channel: socket.socket, kind: int, *content: bytes) -> None:
    """Send an answer that consists of these parts."""
    channel.sendall(b"".join((ANSWER.pack(kind, sum(map(len, content))), *content)))


def refuse(channel: socket.socket, problem: Problem) -> None:
    answer(channel, PROBLEM, json.dumps([problem.code, problem.detail]).encode())
