"""What a worker gets of a pool of processes that all workers have together, and what the supervisor asks of a pool."""

import selectors
import socket
from typing import NamedTuple, Protocol


class Membership(NamedTuple):
    """channel: to the pool; processes: how many it has at most."""

    channel: socket.socket
    processes: int


class Pool(Protocol):
    """Processes that the supervisor starts and lends to workers."""

    def open(self, selector: selectors.BaseSelector) -> None:
        """Begin. What is registered in the selector has a function to call as its data."""
        ...

    def admit(self, number: int) -> Membership:
        """For a worker that is about to be forked. The channel is its own: the supervisor closes it after that."""
        ...

    def leave(self) -> None:
        """In the worker, after the fork: close what is the supervisor's."""
        ...

    def dismiss(self, number: int) -> None:
        """A worker has ended, or was not started."""
        ...

    def bury(self, pid: int, exit_code: int) -> None:
        """A child of the supervisor has ended, maybe one of these processes."""
        ...

    @property
    def due(self) -> float:
        """When `tend` should be called, in seconds of time.monotonic(); infinite if there is nothing to do."""
        ...

    def tend(self) -> None:
        """Do what is due."""
        ...

    def close(self) -> None:
        """End all processes."""
        ...
