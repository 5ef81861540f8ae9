"""Work that ends when its client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from ..errors import ClientGone

T = TypeVar("T")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. If the client disconnects first, `work` is cancelled and ClientGone raised.

    The request's body must have been read, so that the next message can only be a disconnect.
    """
    task = asyncio.current_task()
    assert task is not None
    gone, cancelling = False, task.cancelling()

    def leave(_: asyncio.Future[None]) -> None:
        nonlocal gone
        gone = True
        task.cancel()

    leaving = asyncio.ensure_future(_disconnect(request))
    leaving.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() <= cancelling:  # nobody else wants the task to end
            raise ClientGone("the client left before its answer") from None
        raise
    finally:
        leaving.remove_done_callback(leave)
        leaving.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
