"""Accepts connections on sockets that several workers share, so that each gets its part of them.

An event loop's own server takes all connections that wait, so that one worker would get a whole burst. This one takes
one at a time, and leaves it to the others for a moment while another worker has fewer. So a worker that is busy or dead
keeps no connection waiting for longer than that.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial

from ..workers.worker import Worker
from .connection_limit import ConnectionLimit

LEAVE_SECONDS = 0.001
PAUSE_SECONDS = 1.0  # after an error of the system, such as too many open files
logger = logging.getLogger("app")


class Acceptor:
    """For the running event loop. `protocol` makes a connection's protocol; `limit` counts this worker's connections.

    The sockets must listen, and not block.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        protocol: Callable[[], asyncio.Protocol],
        limit: ConnectionLimit,
        worker: Worker,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._protocol = protocol
        self._limit = limit
        self._worker = worker
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        self._opening: set[asyncio.Task[object]] = set()
        for one in sockets:
            self._listen(one)

    def close(self) -> None:
        """Take no more connections."""
        for pause in self._paused.values():
            pause.cancel()
        for one in self._sockets:
            self._loop.remove_reader(one.fileno())

    def _listen(self, one: socket.socket) -> None:
        self._loop.add_reader(one.fileno(), self._take_turn, one)

    def _take_turn(self, one: socket.socket) -> None:
        least = self._worker.least_connections()
        if least is not None and self._limit.count > least:
            self._pause(one, LEAVE_SECONDS, accept=True)
        else:
            self._accept(one)

    def _accept(self, one: socket.socket) -> None:
        try:
            connection, _ = one.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the client has left
        except OSError as error:
            logger.warning("no connection can be accepted: %s", error.strerror)
            self._pause(one, PAUSE_SECONDS)
            return
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # the client has left
            connection.close()

    def _pause(self, one: socket.socket, seconds: float, *, accept: bool = False) -> None:
        self._loop.remove_reader(one.fileno())
        self._paused[one] = self._loop.call_later(seconds, partial(self._go_on, one, accept=accept))

    def _go_on(self, one: socket.socket, *, accept: bool) -> None:
        del self._paused[one]
        self._listen(one)
        if accept:
            self._accept(one)
