"""Takes turns between clients that send many requests at once.

turns = Turns()
turns.take("192.0.2.1", go_on)      # True: parse now; False: `go_on` is called when it is this client's turn

Most work of a short request is done in the iteration of the event loop that parses its head. If 200 connections sent a
head at the same moment, all others would wait for 200 answers. So each iteration parses a few heads, of all clients in
turn.
"""

import asyncio
from collections import deque
from collections.abc import Callable

HEADS_PER_ITERATION = 4


class Turns:
    """For one event loop. `most`: how many turns each iteration of the event loop gives."""

    def __init__(self, most: int = HEADS_PER_ITERATION) -> None:
        self._most = most
        self._given = 0  # in this iteration
        self._scheduled = False
        self._waiting: dict[str, deque[Callable[[], None]]] = {}  # by client; the next client comes first

    def take(self, client: str, go_on: Callable[[], None]) -> bool:
        """Whether it is this client's turn at once. If not, `go_on` is called when it is."""
        self._schedule()
        if self._given < self._most:
            self._given += 1
            return True
        self._waiting.setdefault(client, deque()).append(go_on)
        return False

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next_iteration)

    def _next_iteration(self) -> None:
        self._scheduled = False
        self._given = min(self._most, sum(map(len, self._waiting.values())))
        for _ in range(self._given):
            client = next(iter(self._waiting))
            queue = self._waiting.pop(client)
            go_on = queue.popleft()
            if queue:
                self._waiting[client] = queue  # the client goes to the end
            go_on()
        if self._waiting:
            self._schedule()
