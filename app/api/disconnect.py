"""Work that ends when its client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from ..errors import ClientGone

T = TypeVar("T")

WATCH_AFTER_SECONDS = 0.02  # most work has ended before; to watch for less costs a twentieth of a small image's time


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for the result of `work`. If the client disconnects first, this cancels `work` and raises ClientGone.

    It looks after the client when WATCH_AFTER_SECONDS have passed. The request's body must have been read, so the next
    message can only be a disconnect.
    """
    task = asyncio.current_task()
    assert task is not None
    gone, cancelling = False, task.cancelling()
    disconnect: asyncio.Future[None] | None = None

    def watch() -> None:
        nonlocal disconnect
        disconnect = asyncio.ensure_future(_disconnected(request))
        disconnect.add_done_callback(cancel_work)

    def cancel_work(_: asyncio.Future[None]) -> None:
        nonlocal gone
        gone = True
        task.cancel()

    later = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, watch)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() <= cancelling:  # no other cancellation is pending
            raise ClientGone("the client disconnected before its answer") from None
        raise
    finally:
        later.cancel()
        if disconnect is not None:
            disconnect.remove_done_callback(cancel_work)
            disconnect.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
