"""Limits the number of connections, always below the limit of descriptors.

limit = ConnectionLimit(most_connections())
limit.add(connection)       # closes a connection if there are too many
"""

import asyncio
import logging
import os
import resource
import time
from typing import Protocol

from ..api.request_context import network_of
from ..workers.tally import Tally

logger = logging.getLogger("app")

MAX_CONNECTIONS = 2048  # each may hold some 100 KB: half a head, or a piece of a body
SPARE_DESCRIPTORS = 32  # for files, pipes of decoding processes, and connections that come before others are closed
LEAST_DESCRIPTORS = 64  # with fewer, the service could not hold one connection beside its own files
LOG_SECONDS = 10.0  # between two lines of the log


class Connection(Protocol):
    client: tuple[str, int] | None
    transport: asyncio.Transport

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""


class DescriptorsError(RuntimeError):
    """The process may not open enough files; the message is for the operator."""


def require_descriptors() -> None:
    """Raises DescriptorsError if this process may open fewer than LEAST_DESCRIPTORS files."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and allowed < LEAST_DESCRIPTORS:
        raise DescriptorsError(f"only {allowed} files may be open, {LEAST_DESCRIPTORS} are needed (ulimit -n)")


def most_connections() -> int:
    """The number of descriptors that are left, at least 1 and at most MAX_CONNECTIONS."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    used = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    return max(1, min(MAX_CONNECTIONS, allowed - used - SPARE_DESCRIPTORS))


class ConnectionLimit:
    """Keeps at most `most` connections, and tells other workers by `tally` how many there are. For one event loop.

    If a new connection exceeds the limit, one is closed: the longest idle of the client network that has the most
    connections. If that network has no idle one, the new connection itself is closed.
    """

    def __init__(self, most: int, tally: Tally | None = None) -> None:
        self.most = most
        self._tally = tally or Tally()
        self._count = 0
        self._by_network: dict[str, dict[Connection, None]] = {}  # longest idle first
        self._closed = 0
        self._logged = float("-inf")

    def add(self, connection: Connection) -> None:
        self._by_network.setdefault(self._network(connection), {})[connection] = None
        self._count += 1
        self._tally.add(1)
        if self._count > self.most:
            crowd = max(self._by_network.values(), key=len)
            victim = next((other for other in crowd if other.idle and other is not connection), connection)
            self.remove(victim)
            victim.transport.abort()
            self._log()

    @property
    def count(self) -> int:
        return self._count

    def touch(self, connection: Connection) -> None:
        """A request on it has ended, so it is now the most recently used one."""
        crowd = self._by_network.get(self._network(connection), {})
        if connection in crowd:
            del crowd[connection]
            crowd[connection] = None

    def remove(self, connection: Connection) -> None:
        network = self._network(connection)
        crowd = self._by_network.get(network, {})
        if connection in crowd:
            del crowd[connection]
            self._count -= 1
            self._tally.add(-1)
            if not crowd:
                del self._by_network[network]

    def _network(self, connection: Connection) -> str:
        return network_of(connection.client[0] if connection.client else "")

    def _log(self) -> None:
        self._closed += 1
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            logger.warning(
                "closed connections: there are too many",
                extra={"fields": {"closed": self._closed, "most": self.most}},
            )
            self._closed, self._logged = 0, now
