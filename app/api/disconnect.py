"""Work that ends when its client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from ..errors import ClientGone

T = TypeVar("T")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for the result of `work`. If the client disconnects first, this cancels `work` and raises ClientGone.

    The request's body must have been read, so the next message can only be a disconnect.
    """
    task = asyncio.current_task()
    assert task is not None
    gone, cancelling = False, task.cancelling()

    def cancel_work(_: asyncio.Future[None]) -> None:
        nonlocal gone
        gone = True
        task.cancel()

    disconnect = asyncio.ensure_future(_disconnected(request))
    disconnect.add_done_callback(cancel_work)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() <= cancelling:  # no other cancellation is pending
            raise ClientGone("the client disconnected before its answer") from None
        raise
    finally:
        disconnect.remove_done_callback(cancel_work)
        disconnect.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
