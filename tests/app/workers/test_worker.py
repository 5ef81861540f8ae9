"""What a worker reads of the others."""

import asyncio
import os
import signal

import pytest

from app.workers.board import ENDED, GENERATION, SERVING, Board
from app.workers.post import Post
from app.workers.worker import Worker


def test_a_worker_that_ended_meanwhile_counts_once() -> None:
    board, post = Board(3), Post(3)
    worker = Worker(board, post, 0)
    assert worker.counts() == [b""]
    for number, part in enumerate(board.parts[:-1]):
        part.numbers[GENERATION] = number + 1
        part.publish(f"counts of {number}".encode())
    assert worker.counts() == [b"", b"counts of 1", b"counts of 2"]
    board.supervisor.publish(ENDED.pack(2) + b"counts of 1")  # and its part is not cleared yet
    assert worker.counts() == [b"counts of 1", b"counts of 2"]
    post.close()


def test_what_is_divided_is_at_least_one() -> None:
    board, post = Board(3), Post(3)
    worker = Worker(board, post, 1)
    assert [worker.share(total) for total in (1, 3, 8)] == [1, 1, 2]
    assert worker.siblings == [] and worker.least_connections() is None and not worker.begun
    board.parts[2].numbers[SERVING] = 1
    assert worker.siblings == [2] and worker.least_connections() == 0
    post.close()


@pytest.mark.anyio
async def test_a_worker_whose_supervisor_is_gone_ends_in_order() -> None:
    board, post = Board(1), Post(1)
    reading, writing = os.pipe()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    worker = Worker(board, post, 0, reading)
    worker.open()
    os.close(writing)
    await ended.wait()
    loop.remove_signal_handler(signal.SIGTERM)
    worker.close()
    os.close(reading)
    post.close()
