"""What one worker knows of the others.

worker.tally(PLACES).others()       # the places that requests of the other workers hold
worker.mail                         # messages to them
"""

import asyncio
import os
import signal

from .board import CONNECTIONS, ENDED, GENERATION, SERVING, Board, Part
from .membership import Membership
from .post import Correspondent, Post
from .tally import Tally


class Worker:
    """One of `count` workers; `number` is from 0. `replaces`: how the worker before it ended, None for the first.

    `lifeline`: the reading end of a pipe that the supervisor holds open. `pool`: of processes that all workers use.
    """

    def __init__(
        self,
        board: Board,
        post: Post,
        number: int,
        lifeline: int = -1,
        replaces: str | None = None,
        pool: Membership | None = None,
    ) -> None:
        self.board = board
        self.number = number
        self.replaces = replaces
        self.pool = pool
        self.mail = Correspondent(post, number)
        self._post = post
        self._lifeline = lifeline

    @property
    def count(self) -> int:
        return self.board.workers

    @property
    def part(self) -> Part:
        return self.board.parts[self.number]

    @property
    def others(self) -> list[Part]:
        """The parts of all other workers."""
        return [part for number, part in enumerate(self.board.parts[:-1]) if number != self.number]

    @property
    def siblings(self) -> list[int]:
        """The numbers of the other workers that serve."""
        return [
            number
            for number, part in enumerate(self.board.parts[:-1])
            if number != self.number and part.numbers[SERVING]
        ]

    @property
    def begun(self) -> bool:
        """Whether all workers have started once."""
        return bool(self.board.supervisor.numbers[SERVING])

    def share(self, total: int) -> int:
        """This worker's part of what is divided equally, at least 1."""
        return max(1, total // self.count)

    def tally(self, place: int) -> Tally:
        return Tally(place, self.part, self.others)

    def least_connections(self) -> int | None:
        """The fewest connections that another serving worker has; None if no other serves."""
        return min((part.numbers[CONNECTIONS] for part in self.others if part.numbers[SERVING]), default=None)

    def open(self) -> None:
        """Read messages, and end this process in order when the supervisor is gone. In the running event loop."""
        self.mail.open()
        if self._lifeline >= 0:
            asyncio.get_running_loop().add_reader(self._lifeline, self._end)

    def close(self) -> None:
        """Read no more messages."""
        self.mail.close()
        if self._lifeline >= 0:
            asyncio.get_running_loop().remove_reader(self._lifeline)

    def serve(self) -> None:
        """Say that this worker takes connections."""
        self.part.numbers[SERVING] = 1
        self.mail.tell(self.mail.supervisor, "started")

    def leave(self) -> None:
        """Say that it takes no more."""
        self.part.numbers[SERVING] = 0

    def fail(self, reason: str) -> None:
        """Tell the supervisor, in a line for the operator, why this worker cannot start."""
        self.mail.tell(self.mail.supervisor, "failed", reason)

    def counts(self) -> list[bytes]:
        """What the others have published last, and what was published by workers that have ended.

        The supervisor's part is read last: a worker that ended meanwhile is in it, and counts once.
        """
        found = [(part.numbers[GENERATION], part.published()) for part in self.others]
        ended = self.board.supervisor.published()
        last = ENDED.unpack_from(ended)[0] if ended else 0
        living = [content for generation, content in found if generation not in (0, last)]
        return [ended[ENDED.size :], *living]

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._lifeline)
        os.kill(os.getpid(), signal.SIGTERM)
