"""The loop of a sandboxed process. It reads requests from standard input, a socket, and answers on it.

    serve(REQUEST, work, memory_bytes=256 << 20, cpu_seconds=2.0)

`work(channel, content, *fields)` gets the bytes of a request and the fields of its header after the first. The kernel
ends the process if a request takes more than `cpu_seconds`; the process ends itself if one takes too much memory.
"""

import os
import signal
import socket
import struct
from collections.abc import Callable
from typing import Concatenate

from ..errors import Problem
from .channel import OUT_OF_MEMORY, READY, answer, receive, refuse
from .confinement import confine


def serve(
    header: struct.Struct,
    work: Callable[Concatenate[socket.socket, bytes, ...], None],
    *,
    memory_bytes: int,
    cpu_seconds: float,
) -> None:
    """Answer until the other side closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the service
    with socket.socket(fileno=0) as channel:
        answer(channel, READY, ",".join(sorted(confine(memory_bytes))).encode())
        while request := receive(channel, header.size):
            size, *fields = header.unpack(request)
            try:
                content = receive(channel, size)
                signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF has no handler, so it ends the process
                work(channel, content, *fields)
            except Problem as problem:
                if isinstance(problem.__cause__, MemoryError):
                    os._exit(OUT_OF_MEMORY)
                refuse(channel, problem)
            except MemoryError:
                os._exit(OUT_OF_MEMORY)  # the heap may be too fragmented for the next request
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                content = b""  # an idle process keeps no request
