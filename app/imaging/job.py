"""An image on its way through the decoder."""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DeadlineExceeded, Problem, forget_tracebacks
from .fair_queue import Use
from .kinds import Kind
from .process import DecodingConversation

T = TypeVar("T")
Images = NDArray[np.uint8]
NO_TIME = "no time was left to decode the image: the service is busy"
NO_ANSWER = "no answer within the deadline: the service is busy, try again later"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """thumbnails: uint8 [k, height, width, 3]; answer: to them, of `hand_on`; seconds: that decoding took."""

    thumbnails: Images
    kind: Kind
    answer: T
    seconds: float


@dataclass(eq=False)
class Job(Generic[T]):
    """`decode` is called when its turn has come, in a thread, with the process, or None where none can be started.

    It returns what is left to do without the process, and raises ProcessEnded or what the caller gets.
    """

    content: bytes
    views: int
    deadline: float
    hand_on: Callable[[Images], "Future[T]"]
    client: str
    kind: Kind | None
    small: bool
    decode: Callable[["DecodingConversation | None", Use, "Job[Any]"], Callable[[], None]]
    started: float = field(default_factory=time.monotonic)
    result: "Future[Decoded[T]]" = field(default_factory=Future)
    handed_on: "Future[T] | None" = None
    abandoned: bool = False
    number: int = field(default_factory=_numbers.__next__)  # no other image of this process has it
    loan: int = 0  # of app.imaging.borrowed_processes: the number of what it is decoded with
    worker: int = 0  # of its own processes: app.imaging.pool has a type of its own

    def begin(self) -> bool:
        """Whether it is still wanted. It may begin again: the small lane returns an image that is too large."""
        return self.result.running() or self.result.set_running_or_notify_cancel()

    def finish(self, thumbnails: Images, kind: Kind) -> None:
        """Hand the thumbnails on, unless the caller has given up. The caller wakes up once, with the answer to them."""
        try:
            self._hand_on(thumbnails, kind)
        except Exception as error:
            self.fail(error)

    def _hand_on(self, thumbnails: Images, kind: Kind) -> None:
        if self.abandoned:
            self.result.set_exception(DeadlineExceeded(NO_TIME))
            return
        seconds = time.monotonic() - self.started
        self.content = b""
        self.handed_on = handed_on = self.hand_on(thumbnails)
        if self.abandoned:
            handed_on.cancel()
        handed_on.add_done_callback(partial(self._answer, thumbnails, kind, seconds))

    def _answer(self, thumbnails: Images, kind: Kind, seconds: float, handed_on: "Future[T]") -> None:
        self.handed_on = None  # which keeps its callbacks, and so this job
        if handed_on.cancelled():  # the caller has given up
            self.result.set_exception(DeadlineExceeded(NO_ANSWER))
        elif error := handed_on.exception():
            self.result.set_exception(error)
        else:
            self.result.set_result(Decoded(thumbnails, kind, handed_on.result(), seconds))

    def fail(self, error: Exception) -> None:
        """Give the caller the error."""
        if isinstance(error, Problem):
            forget_tracebacks(error)
        self.result.set_exception(error)

    def abandon(self) -> None:
        """The caller has given up: withdraw work that has not begun, and drop the result of work that has."""
        self.abandoned = True
        self.result.cancel()
        if self.handed_on is not None:
            self.handed_on.cancel()
