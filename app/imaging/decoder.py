"""Encoded images in, thumbnails out, on a few threads and within a budget of pixels.

decoder = Decoder(threads=2, max_pixels=25_000_000, max_inflight_pixels=25_000_000, height=32, width=32)
decoded = await decoder.decode(content, views=1, deadline=deadline, hand_on=submit)
decoder.close()
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DeadlineExceeded
from .decode import EncodedImage

T = TypeVar("T")
Images = NDArray[np.uint8]

NO_TIME = "no time was left to decode the image: the service is busy"


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """thumbnails: uint8 [k, height, width, 3]; handed_on: what `hand_on` made of them; seconds: including the wait."""

    thumbnails: Images
    handed_on: "Future[T]"
    seconds: float


class Decoder:
    """For one event loop; `close` it when done. height, width: of thumbnails, in pixels."""

    def __init__(self, *, threads: int, max_pixels: int, max_inflight_pixels: int, height: int, width: int) -> None:
        self._max_pixels = max_pixels
        self._height, self._width = height, width
        self._budget = PixelBudget(max_inflight_pixels)
        # Pillow releases the interpreter's lock while it decodes: a thread for each core, and no more.
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def decode(
        self, content: bytes, views: int, deadline: float, hand_on: Callable[[Images], "Future[T]"]
    ) -> Decoded[T]:
        """Decode an image to `views` thumbnails at most; see EncodedImage.thumbnails for their number.

        The thread that decoded calls `hand_on` with the thumbnails: a change of threads in between would cost a wait.
        `deadline` is in seconds of time.monotonic(). If the caller is cancelled, what was handed on is cancelled.

        Raises UndecodableImage, UnsupportedMediaType, ImageTooLarge or DeadlineExceeded, and what `hand_on` raises.
        """
        started = time.monotonic()

        def decode(image: EncodedImage) -> Decoded[T]:
            thumbnails = image.thumbnails(views, self._height, self._width)
            return Decoded(thumbnails, hand_on(thumbnails), time.monotonic() - started)

        def decode_if_room() -> EncodedImage | Decoded[T]:
            image = EncodedImage.identify(content, self._max_pixels)
            with self._budget.hold_at_once(image.pixels) as held:
                return decode(image) if held else image

        found = await self._run(deadline, decode_if_room)
        if isinstance(found, Decoded):
            return found
        async with self._budget.hold(found.pixels, deadline):
            decoded = await self._run(deadline, lambda: decode(found))
            assert isinstance(decoded, Decoded)
            return decoded

    def close(self) -> None:
        self._threads.shutdown()

    async def _run(
        self, deadline: float, function: Callable[[], EncodedImage | Decoded[T]]
    ) -> EncodedImage | Decoded[T]:
        """The function's result. If the caller is cancelled or the deadline passes, work that waits is withdrawn.

        Work that has begun cannot be stopped. It is waited for, since it holds its memory until it ends.
        """
        work = self._threads.submit(function)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.wrap_future(work)
        except (asyncio.CancelledError, TimeoutError) as error:
            if not work.cancel():  # the awaited wrapper is cancelled, the work itself is not
                await asyncio.wait({result := asyncio.wrap_future(work)})
                if result.exception() is None and isinstance(done := result.result(), Decoded):
                    done.handed_on.cancel()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(NO_TIME) from None
            raise


class PixelBudget:
    """Pixels that are decoded at once; images wait in the order of their arrival.

    An image that is larger than the whole budget waits until it is alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def hold_at_once(self, pixels: int) -> Iterator[bool]:
        """Yields whether the pixels were free, and are now held. For any thread."""
        pixels = min(pixels, self.limit)
        held = self._take(pixels)
        try:
            yield held
        finally:
            if held:
                self._give_back(pixels)

    @asynccontextmanager
    async def hold(self, pixels: int, deadline: float) -> AsyncIterator[None]:
        """Wait for the pixels. Raises DeadlineExceeded when `deadline` (time.monotonic() seconds) passes first."""
        pixels = min(pixels, self.limit)
        await self._acquire(pixels, deadline)
        try:
            yield
        finally:
            self._give_back(pixels)

    def _take(self, pixels: int) -> bool:
        with self._lock:
            free = not self._waiting and self.used + pixels <= self.limit
            if free:
                self.used += pixels
            return free

    async def _acquire(self, pixels: int, deadline: float) -> None:
        if self._take(pixels):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (pixels, turn)
        with self._lock:
            self._waiting.append(entry)
        self._give_back(0)  # room may have come meanwhile
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await turn
        except BaseException as error:
            with self._lock:
                came = entry not in self._waiting  # in the same moment
                if not came:
                    self._waiting.remove(entry)
            self._give_back(pixels if came else 0)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(NO_TIME) from None
            raise

    def _give_back(self, pixels: int) -> None:
        """Also lets waiting images in, as far as there is room."""
        with self._lock:
            self.used -= pixels
            while self._waiting and self.used + self._waiting[0][0] <= self.limit:
                next_pixels, turn = self._waiting.popleft()
                self.used += next_pixels
                turn.get_loop().call_soon_threadsafe(_set, turn)


def _set(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_result(None)
