import asyncio
import itertools
import logging
import random
import threading
import time

import numpy as np
import pytest

from app.errors import DeadlineExceeded, Unavailable
from app.inference.engine import Engine, ThreadsError
from app.inference.sessions import Images, Outputs


def images(*values: int) -> Images:
    """One image a value, every pixel of it that value."""
    return np.array(values, np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)


def mean_logits(batch: Images, maps: bool) -> Outputs:
    """Two logits an image, its value and the batch's size; its score is its value, and so is all of its maps."""
    value = batch.reshape(len(batch), -1).mean(1).astype(np.float32)
    size = np.full(len(batch), len(batch), np.float32)
    return Outputs(np.stack([value, size], axis=1), value, np.tile(value[:, None, None, None], 4) if maps else None)


class Gate:
    """A session that computes nothing until it is opened, and tells what it was given."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        self.maps: list[bool] = []

    async def entering(self) -> None:
        """Return when one more batch is being computed."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=30)

    def __call__(self, batch: Images, maps: bool) -> Outputs:
        self.batches.append([int(value) for value in batch[:, 0, 0, 0]])
        self.maps.append(maps)
        self.entered.release()
        assert self.opened.wait(30)
        return mean_logits(batch, maps)


def engine_of(compute: object, **options: object) -> Engine:
    return Engine(compute, **{"threads": 1, "max_batch_images": 8, **options})


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


async def until(condition: object) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def test_a_call_gets_the_logits_of_its_images() -> None:
    engine = engine_of(mean_logits)
    answer = await engine.infer(images(7, 9), soon())
    assert answer.outputs.logits.tolist() == [[7, 2], [9, 2]]
    assert answer.inference_seconds >= 0
    assert answer.queue_seconds >= 0
    engine.close()


async def test_waiting_work_is_batched_up_to_the_limit() -> None:
    gate = Gate()
    sizes: list[int] = []
    engine = engine_of(gate, max_batch_images=4, on_batch=sizes.append)
    first = asyncio.create_task(engine.infer(images(0), soon()))
    await gate.entering()
    rest = [asyncio.create_task(engine.infer(images(n), soon())) for n in range(1, 7)]
    await asyncio.sleep(0)
    gate.opened.set()
    answers = await asyncio.gather(first, *rest)
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert sizes == [1, 4, 2]
    assert [int(answer.outputs.logits[0, 0]) for answer in answers] == list(range(7))
    engine.close()


async def test_class_maps_are_computed_only_for_batches_that_request_them() -> None:
    gate = Gate()
    engine = engine_of(gate, max_batch_images=3)
    first = asyncio.create_task(engine.infer(images(0), soon()))
    await gate.entering()
    rest = [
        asyncio.create_task(engine.infer(images(*group), soon(), maps=maps))
        for group, maps in [((1,), False), ((2, 3), True), ((4,), False)]
    ]
    await asyncio.sleep(0)
    gate.opened.set()
    _, beside, wanted, _ = await asyncio.gather(first, *rest)
    assert gate.batches == [[0], [1, 2, 3], [4]]
    assert gate.maps == [False, True, False]
    assert wanted.outputs.class_maps[:, 0, 0, 0].tolist() == wanted.outputs.ood_scores.tolist() == [2, 3]
    assert beside.outputs.ood_scores.tolist() == [1]
    engine.close()


async def test_a_call_above_the_limit_is_a_batch_of_its_own() -> None:
    gate = Gate()
    engine = engine_of(gate, max_batch_images=2)
    first = asyncio.create_task(engine.infer(images(0), soon()))
    await gate.entering()
    rest = [asyncio.create_task(engine.infer(images(*group), soon())) for group in [(1, 2, 3), (4,)]]
    await asyncio.sleep(0)
    gate.opened.set()
    answers = await asyncio.gather(first, *rest)
    assert gate.batches == [[0], [1, 2, 3], [4]]
    assert answers[1].outputs.logits[:, 0].tolist() == [1, 2, 3]
    engine.close()


async def test_an_idle_worker_takes_work_while_another_is_busy() -> None:
    gate = Gate()
    engine = engine_of(gate, threads=2)
    calls = [asyncio.create_task(engine.infer(images(n), soon())) for n in (1, 2)]
    for _ in calls:
        await gate.entering()  # both are being computed, neither waits
    gate.opened.set()
    await asyncio.gather(*calls)
    assert sorted(gate.batches) == [[1], [2]]
    engine.close()


async def test_cancelled_work_is_not_computed() -> None:
    gate = Gate()
    engine = engine_of(gate)
    busy = asyncio.create_task(engine.infer(images(0), soon()))
    await gate.entering()
    left = asyncio.create_task(engine.infer(images(1), soon()))
    stayed = asyncio.create_task(engine.infer(images(2), soon()))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    gate.opened.set()
    assert (await stayed).outputs.logits[0, 0] == 2
    await busy
    assert gate.batches == [[0], [2]]
    engine.close()


async def test_work_past_its_deadline_is_dropped() -> None:
    gate = Gate()
    engine = engine_of(gate)
    busy = asyncio.create_task(engine.infer(images(0), soon()))
    await gate.entering()
    with pytest.raises(DeadlineExceeded):
        await engine.infer(images(1), soon(0.01))
    gate.opened.set()
    await busy
    engine.close()
    assert gate.batches == [[0]]


async def test_a_worker_drops_work_that_expired_before_its_caller_noticed() -> None:
    gate = Gate()
    engine = engine_of(gate)
    busy = asyncio.create_task(engine.infer(images(0), soon()))
    await gate.entering()
    late = asyncio.create_task(engine.infer(images(1), soon(0.05)))
    await asyncio.sleep(0)
    time.sleep(0.06)  # the event loop is held up, so the worker is first to see the deadline
    gate.opened.set()
    with pytest.raises(DeadlineExceeded):
        await late
    await busy
    engine.close()
    assert gate.batches == [[0]]


async def test_a_worker_that_fails_ends_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    deaths: list[None] = []

    def compute(batch: Images, maps: bool) -> Outputs:
        gate(batch, maps)
        raise RuntimeError("out of memory")

    engine = engine_of(compute, on_death=lambda: deaths.append(None))
    calls = [asyncio.create_task(engine.infer(images(n), soon())) for n in range(3)]
    await gate.entering()
    assert engine.alive
    gate.opened.set()
    with caplog.at_level(logging.ERROR):
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, Unavailable)
    await until(lambda: deaths)
    assert not engine.alive
    assert engine.died
    with pytest.raises(Unavailable):
        await engine.infer(images(1), soon())
    engine.close()
    assert "worker died" in caplog.text


async def test_a_caller_computes_itself_in_the_place_of_an_idle_worker() -> None:
    threads: list[int] = []

    def compute(batch: Images, maps: bool) -> Outputs:
        threads.append(threading.get_ident())
        return mean_logits(batch, maps)

    engine = engine_of(compute)
    assert engine.submit(images(7), soon(), here=True).result(0).outputs.logits.tolist() == [[7, 1]]
    assert threads == [threading.get_ident()]
    await engine.infer(images(8), soon())  # the worker goes on
    assert (await asyncio.wrap_future(engine.submit(images(1, 2), soon(), here=True))).outputs.logits[
        :, 0
    ].tolist() == [1, 2]
    assert threading.get_ident() not in threads[1:]  # several images are left to the worker
    engine.close()


async def test_no_more_threads_compute_than_there_are_workers() -> None:
    gate = Gate()
    engine = engine_of(gate)
    here = asyncio.create_task(asyncio.to_thread(engine.submit, images(1), soon(), here=True))
    await gate.entering()
    waiting = [engine.submit(images(number), soon(), here=True) for number in (2, 3)]  # its worker has no place
    assert len(gate.batches) == 1
    gate.opened.set()
    answers = [await here, *waiting]
    assert [(await asyncio.wrap_future(answer)).outputs.logits[0, 0] for answer in answers] == [1, 2, 3]
    assert gate.batches[0] == [1] and sum(gate.batches, []) == [1, 2, 3]
    engine.close()


@pytest.mark.parametrize("threads", [1, 2])
async def test_closing_waits_for_a_caller_that_computes_and_for_work_behind_it(threads: int) -> None:
    gate = Gate()
    engine = engine_of(gate, threads=threads)
    here = [asyncio.create_task(asyncio.to_thread(engine.submit, images(n), soon(), here=True)) for n in range(threads)]
    for _ in range(threads):
        await gate.entering()
    behind = engine.submit(images(7), soon())
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    await until(lambda: not engine.alive)
    assert not closing.done()
    gate.opened.set()
    await closing
    answers = [(await caller).result(0) for caller in here]
    assert sorted(answer.outputs.logits[0, 0] for answer in answers) == list(range(threads))
    assert behind.result(0).outputs.logits[0, 0] == 7


async def test_a_caller_that_fails_ends_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    def fail(batch: Images, maps: bool) -> Outputs:
        raise MemoryError("no memory")

    deaths: list[int] = []
    engine = engine_of(fail, on_death=lambda: deaths.append(1))
    with pytest.raises(Unavailable):
        engine.submit(images(1), soon(), here=True).result(0)
    assert engine.died and deaths == [1]
    assert "no memory" in caplog.text
    with pytest.raises(Unavailable):
        engine.submit(images(1), soon(), here=True)
    engine.close()


async def test_closing_finishes_accepted_work() -> None:
    gate = Gate()
    engine = engine_of(gate)
    calls = [asyncio.create_task(engine.infer(images(n), soon())) for n in range(5)]
    await gate.entering()
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    await until(lambda: not engine.alive)
    with pytest.raises(Unavailable):
        await engine.infer(images(9), soon())
    gate.opened.set()
    answers = await asyncio.gather(*calls)
    assert [int(answer.outputs.logits[0, 0]) for answer in answers] == list(range(5))
    await closing
    assert not engine.died


@pytest.mark.parametrize("seed", range(5))
async def test_no_answer_is_lost_or_swapped_among_random_cancels_and_deadlines(seed: int) -> None:
    chance = random.Random(seed)
    engine = engine_of(mean_logits, threads=2, max_batch_images=3)

    async def call(value: int) -> str:
        await asyncio.sleep(chance.random() * 0.02)
        group = [value] * chance.randint(1, 4)
        try:
            answer = await engine.infer(images(*group), soon(30 if chance.random() < 0.7 else chance.random() * 0.002))
        except DeadlineExceeded:
            return "late"
        assert answer.outputs.logits[:, 0].tolist() == answer.outputs.ood_scores.tolist() == group
        return "answered"

    calls = [asyncio.create_task(call(n)) for n in range(200)]
    for task in calls:
        if chance.random() < 0.2:
            asyncio.get_running_loop().call_later(chance.random() * 0.02, task.cancel)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(outcome in ("answered", "late") or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert "answered" in outcomes
    engine.close()
    assert not engine._queue
    assert not engine.died


@pytest.mark.parametrize("seed", range(10))
async def test_an_error_at_any_moment_ends_all_waiting_calls(seed: int) -> None:
    chance = random.Random(seed)
    batches, fatal = itertools.count(), chance.randrange(30)
    deaths: list[None] = []

    def compute(batch: Images, maps: bool) -> Outputs:
        if next(batches) == fatal:
            raise RuntimeError("the machine")
        return mean_logits(batch, maps)

    engine = engine_of(compute, threads=3, max_batch_images=3, on_death=lambda: deaths.append(None))

    async def call(value: int) -> str:
        await asyncio.sleep(chance.random() * 0.02)
        group = [value] * chance.randint(1, 4)
        try:
            answer = await engine.infer(images(*group), soon(30 if chance.random() < 0.7 else chance.random() * 0.002))
        except DeadlineExceeded:
            return "late"
        except Unavailable:
            return "unavailable"
        assert answer.outputs.logits[:, 0].tolist() == answer.outputs.ood_scores.tolist() == group
        return "answered"

    calls = [asyncio.create_task(call(n)) for n in range(200)]
    for task in calls:
        if chance.random() < 0.2:
            asyncio.get_running_loop().call_later(chance.random() * 0.02, task.cancel)
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
    known = ("answered", "late", "unavailable")
    assert all(outcome in known or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    await until(lambda: deaths)
    with pytest.raises(Unavailable):  # whoever was in the last batch may have been cancelled
        await engine.infer(images(1), soon())
    engine.close()
    assert not engine._queue
    assert not any(worker.is_alive() for worker in engine._workers)
    assert deaths == [None]


def test_a_thread_that_cannot_be_started_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)
        started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(ThreadsError, match="only 2 of 5 threads could be started") as refused:
        engine_of(mean_logits, threads=5)
    assert "\n" not in str(refused.value)
    assert not any(thread.is_alive() for thread in started)


async def test_an_engine_without_work_calls_on_idle_once_after_each_time_of_work() -> None:
    calls = threading.Semaphore(0)
    engine = engine_of(mean_logits, threads=2, on_idle=calls.release, idle_seconds=0.02)
    try:
        for value in (1, 2):
            await engine.infer(images(value), soon())
            assert await asyncio.to_thread(calls.acquire, timeout=30)
        await asyncio.sleep(0.1)
        assert not calls.acquire(blocking=False)
    finally:
        engine.close()


async def test_an_engine_at_work_or_never_used_does_not_call_on_idle() -> None:
    gate, calls = Gate(), []
    engine = engine_of(gate, threads=2, on_idle=lambda: calls.append(1), idle_seconds=0.01)
    try:
        await asyncio.sleep(0.1)
        answer = asyncio.create_task(engine.infer(images(1), soon()))
        await gate.entering()
        await asyncio.sleep(0.1)
        assert not calls
        gate.opened.set()
        await answer
    finally:
        gate.opened.set()
        engine.close()


async def test_an_error_of_on_idle_ends_the_engine_like_one_of_inference() -> None:
    died = threading.Event()

    def broken() -> None:
        raise RuntimeError("no memory to give back")

    engine = engine_of(mean_logits, on_idle=broken, on_death=died.set, idle_seconds=0.01)
    await engine.infer(images(1), soon())
    assert await asyncio.to_thread(died.wait, 30)
    with pytest.raises(Unavailable):
        await engine.infer(images(1), soon())
    engine.close()
