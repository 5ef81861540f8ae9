"""Tells whether one connection has the service for itself.

lone = LoneConnection()
lone.alone(connection)       # at each request; True if lately no other connection sent one
"""

import time
import weakref
from collections.abc import Callable

ALONE_AFTER_SECONDS = 0.1


class LoneConnection:
    """For one event loop. `now`: seconds of a monotonic clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last: weakref.ref[object] | None = None  # the connection that sent the last request
        self._since = 0.0  # when its first request came after one of another

    def alone(self, connection: object) -> bool:
        """Note that a request comes on `connection`. Whether those of the last ALONE_AFTER_SECONDS all came on it."""
        now = self._now()
        if self._last is None or self._last() is not connection:
            self._last, self._since = weakref.ref(connection), now
        return now - self._since >= ALONE_AFTER_SECONDS
