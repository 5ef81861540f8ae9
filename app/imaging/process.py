"""A process that only decodes images. The service kills it if an image takes too much time or memory.

    process = DecodingProcess(memory_bytes=400 << 20, cpu_seconds=2.0)     # OSError if it cannot start
    pixels, kind = process.identify(content, max_pixels, Order(1, sizes, free_pixels=1 << 20))
    thumbnails = process.thumbnails(views=1, height=32, width=32)     # or process.decline()
    process.end()

One thread at a time may use it; any thread may call `end`.
"""

import math
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageTooLarge, Problem, TooExpensive, Unavailable, UndecodableImage, UnsupportedMediaType
from ..sandbox.conversation import Conversation, ProcessEnded
from ..sandbox.process import SandboxedProcess
from .kinds import Kind, Sizes, kind_of
from .protocol import DECODE, IDENTIFIED, IDENTITY, REQUEST, THUMBNAILS

SILENCE_PER_CPU_SECOND = 10.0  # wall-clock time that a second of CPU time may take on a busy machine
WORKER = f"{__package__}.worker"
PROBLEMS = (ImageTooLarge, TooExpensive, UndecodableImage, UnsupportedMediaType)


def silence_seconds(cpu_seconds: float) -> float:
    """After so long without an answer a process is killed that may take cpu_seconds for an image."""
    return SILENCE_PER_CPU_SECOND * cpu_seconds


def problem_of(ended: ProcessEnded) -> Problem:
    """The error that a client gets whose image was being decoded when the process ended."""
    if ended.reason == "killed":
        return Unavailable("the process that decoded the image was killed, maybe for lack of memory: try again later")
    if ended.exceeded is None:
        return UndecodableImage("the image makes its decoder crash")
    return TooExpensive(f"decoding the image takes more {ended.exceeded} than is allowed")


class Order(NamedTuple):
    """What is wanted of an image. One that takes at most `free_pixels` is decoded without a further question."""

    views: int
    sizes: Sizes
    free_pixels: int


class DecodingConversation(Conversation):
    """What a decoding process is asked."""

    _coming = 0  # bytes, at most, of thumbnails that come without being asked for

    def identify(self, content: bytes, max_pixels: int, order: Order | None = None) -> tuple[int, Kind]:
        """Read the image's header. Returns the memory that decoding will take, in pixels of four bytes, and the kind.

        Then `thumbnails` or `decline` must follow. Raises a Problem, or ProcessEnded.
        """
        views, free, sides = 0, -1, (0, 0, 0, 0)
        if order:
            views, free, sides = (
                order.views,
                order.free_pixels,
                (*order.sizes["thumbnails"], *order.sizes["photographs"]),
            )
        self.send(REQUEST.pack(len(content), max_pixels, max(0, free), views, *sides), content)
        try:
            pixels, width, height = IDENTITY.unpack(self.answer(IDENTIFIED, most=IDENTITY.size, problems=PROBLEMS))
        except struct.error as error:
            raise self.failed(error) from None
        kind = kind_of(width, height)
        self._coming = views * 3 * math.prod(order.sizes[kind]) if order and pixels <= free else 0
        return pixels, kind

    def thumbnails(self, views: int, height: int, width: int) -> NDArray[np.uint8]:
        """Decode the identified image to uint8 RGB [k, height, width, 3]; see EncodedImage.thumbnails.

        If it was ordered, views and size must be the order's. Raises a Problem, or ProcessEnded.
        """
        if not self._coming:
            self.send(DECODE.pack(views, height, width))
        one = height * width * 3
        content = self.answer(THUMBNAILS, most=views * one, problems=PROBLEMS)
        if not content or len(content) % one:
            raise self.failed(ValueError())
        return np.frombuffer(content, np.uint8).reshape(-1, height, width, 3)

    def decline(self) -> None:
        """Skip the identified image. Raises ProcessEnded."""
        if self._coming:
            self.answer(THUMBNAILS, most=self._coming)
        else:
            self.send(DECODE.pack(0, 0, 0))


class DecodingProcess(DecodingConversation, SandboxedProcess):
    """memory_bytes: memory that an image may allocate; cpu_seconds: its CPU time, with reading the header."""

    def __init__(self, *, memory_bytes: int, cpu_seconds: float) -> None:
        """Raises OSError if the process cannot be started, and ProcessEnded if it is killed while it starts."""
        super().__init__(WORKER, memory_bytes, cpu_seconds, silence_seconds=silence_seconds(cpu_seconds))
