"""The supervisor's pool in a thread, and workers' ends of it in this process. Stopped processes stand for slow ones."""

import asyncio
import logging
import os
import queue
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from app.errors import DeadlineExceeded, TooExpensive, Unavailable, UndecodableImage, UnsupportedMediaType
from app.imaging import borrowed_processes
from app.imaging.borrowed_processes import BorrowedProcesses, LentProcess
from app.imaging.decoder import Decoder
from app.imaging.formats import DECODERS
from app.imaging.kinds import Kind
from app.imaging.limits import Limits
from app.imaging.pool import Pool
from app.workers.membership import Membership
from tests.app.imaging.test_decoder import LARGE, PHOTO, SIZES, decode, encoded, photograph, runs, until
from tests.conftest import ROOT

SLOW = encoded(2800, 2800, "WEBP", method=0, lossless=True, quality=0)


class Host:
    """What the supervisor does for a pool, in a thread."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._wakeup = socket.socketpair()
        self._wakeup[0].setblocking(False)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def do(self, action: Callable[[], Any]) -> Any:
        """In the pool's thread."""
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._asked.put(lambda: done.put(action()))
        self._wakeup[1].send(b"\0")
        return done.get(timeout=60)

    def close(self) -> None:
        self._asked.put(None)
        self._wakeup[1].send(b"\0")
        self._thread.join()
        for end in self._wakeup:
            end.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup[0], selectors.EVENT_READ)
            self.pool.open(selector)
            while True:
                for key, _ in selector.select(max(0, min(0.01, self.pool.due - time.monotonic()))):
                    if key.data:
                        key.data()
                    else:
                        self._wakeup[0].recv(1)
                for pid in self.pool.pids():
                    if (ended := os.waitpid(pid, os.WNOHANG)) != (0, 0):
                        self.pool.bury(pid, os.waitstatus_to_exitcode(ended[1]))
                self.pool.tend()
                while not self._asked.empty():
                    action = self._asked.get()
                    if action is None:
                        self.pool.close()
                        return
                    action()


class Worker:
    def __init__(self, membership: Membership, cpu_seconds: float) -> None:
        self.killed: list[str] = []
        self.processes = BorrowedProcesses(membership, cpu_seconds=cpu_seconds, on_kill=self.killed.append)
        self.decoder = Decoder(processes=1, limits=Limits(), sizes=SIZES, borrowed=self.processes)

    def close(self) -> None:
        self.processes.close()
        self.decoder.close()


class Service:
    """Two workers and their pool."""

    def __init__(self, threads: int = 1, limits: Limits | None = None, idle_seconds: float = 60) -> None:
        self.limits = limits or Limits()
        self.pool = Pool(threads, self.limits, idle_seconds)
        self.host = Host(self.pool)
        self.workers = [self.admit(number) for number in range(2)]

    def admit(self, number: int) -> Worker:
        return Worker(self.host.do(lambda: self.pool.admit(number)), self.limits.cpu_seconds)

    def dismiss(self, number: int) -> None:
        self.host.do(lambda: self.pool.dismiss(number))

    @property
    def pids(self) -> list[int]:
        return self.host.do(self.pool.pids)  # type: ignore[no-any-return]

    @property
    def lent(self) -> list[tuple[str, int, str]]:
        """The lanes that are in use: for what they are, for which worker and for which client."""
        lanes = self.host.do(lambda: [(lane.use, lane.image) for lane in self.pool._lanes if lane.loan])
        return sorted((use, image.worker, image.client) for use, image in lanes)

    @property
    def waiting(self) -> int:
        return self.host.do(lambda: sum(map(len, self.pool._queue._waiting.values())))  # type: ignore[no-any-return]

    def signal(self, number: signal.Signals) -> None:
        for pid in self.pids:
            os.kill(pid, number)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.host.close()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


async def stopped(service: Service) -> None:
    """All four processes have started, and are stopped."""
    clients = [(0, "a"), (0, "a"), (1, "a"), (1, "b")]
    while len(service.pids) < 4:
        contents = [encoded(100, 100), LARGE, LARGE, LARGE]
        decoders = [service.workers[worker].decoder for worker, _ in clients]
        await asyncio.gather(
            *(
                decode(one, content, client)
                for one, content, (_, client) in zip(decoders, contents, clients, strict=True)
            )
        )
    service.signal(signal.SIGSTOP)


async def test_both_workers_get_the_same_as_from_processes_of_their_own(service: Service) -> None:
    for kind in DECODERS:
        content = encoded(200, 150, kind)
        for worker in service.workers:
            np.testing.assert_array_equal((await decode(worker.decoder, content)).thumbnails, photograph(content))
    assert len(service.pids) == 1  # one after the other
    found = await asyncio.gather(*(decode(worker.decoder, LARGE, "a") for worker in service.workers for _ in range(20)))
    for one in found:
        np.testing.assert_array_equal(one.thumbnails, photograph(LARGE))
    assert len(service.pids) == 2


async def test_what_is_refused_has_its_reason(service: Service) -> None:
    for worker in service.workers:
        with pytest.raises(UndecodableImage, match="the PNG is cut short or corrupt"):
            await decode(worker.decoder, PHOTO[: len(PHOTO) // 2])
        with pytest.raises(UnsupportedMediaType, match="TIFF"):
            await decode(worker.decoder, b"II*\0" + bytes(100_000))
        assert worker.killed == []


async def test_lanes_are_of_all_workers_together(service: Service) -> None:
    """One client's images in both workers hold the general lanes; another client has the spare one, in either."""
    await stopped(service)
    one, other = (worker.decoder for worker in service.workers)
    crowd = [asyncio.create_task(decode(decoder, LARGE, "crowd")) for decoder in (one, one, one, other, other)]
    await until(lambda: len(service.lent) == 2 and service.waiting == 3)
    assert [(use, client) for use, _, client in service.lent] == [("general", "crowd")] * 2
    late = asyncio.create_task(decode(one, LARGE, "late"))
    await until(lambda: ("spare", 0, "late") in service.lent)
    small = asyncio.create_task(decode(other, encoded(100, 100), "crowd"))
    await until(lambda: ("small", 1, "crowd") in service.lent)
    service.signal(signal.SIGCONT)
    await asyncio.gather(*crowd, late, small)
    await until(lambda: not service.lent)
    assert not service.pool._queue._held and not any(service.pool._queue._fed.values())


async def test_the_next_lane_is_for_the_client_that_holds_the_fewest(service: Service) -> None:
    await stopped(service)
    one, other = (worker.decoder for worker in service.workers)
    order: list[str] = []

    async def note(decoder: Decoder, client: str) -> None:
        await decode(decoder, LARGE, client)
        order.append(client)

    tasks = [asyncio.create_task(note(one, "crowd")) for _ in range(6)]
    await until(lambda: service.waiting == 4)
    tasks += [asyncio.create_task(note(other, client)) for client in ("x", "y")]
    await until(lambda: service.waiting == 5)
    service.signal(signal.SIGCONT)
    await asyncio.gather(*tasks)
    assert order.index("y") < 5


async def test_one_worker_may_use_all_lanes() -> None:
    service = Service(threads=3)
    try:
        decoder = service.workers[0].decoder
        while len(service.pids) < 4:
            await asyncio.gather(*(decode(decoder, LARGE, "a") for _ in range(8)))
        service.signal(signal.SIGSTOP)
        tasks = [asyncio.create_task(decode(decoder, LARGE, "a")) for _ in range(8)]
        await until(lambda: service.lent == [("general", 0, "a")] * 4)
        service.signal(signal.SIGCONT)
        await asyncio.gather(*tasks)
    finally:
        service.close()


async def test_a_large_picture_of_few_bytes_leaves_the_small_lane(service: Service) -> None:
    await stopped(service)
    content = encoded(2000, 1000, "PNG", plain=True)
    assert len(content) < 1 << 16
    decoder = service.workers[0].decoder
    tasks = [asyncio.create_task(decode(decoder, data, "a")) for data in (LARGE, LARGE, content)]
    await until(lambda: [use for use, _, _ in service.lent] == ["general", "general", "small"])
    service.signal(signal.SIGCONT)
    *_, found = await asyncio.gather(*tasks)
    np.testing.assert_array_equal(found.thumbnails, photograph(content))


async def test_an_image_over_its_time_is_refused_and_only_its_worker_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # However busy the machine is, the limit of processor time is reached first.
    monkeypatch.setattr("app.imaging.process.SILENCE_PER_CPU_SECOND", 1000.0)
    service = Service(limits=Limits(cpu_seconds=0.05))
    try:
        one, other = service.workers
        with pytest.raises(TooExpensive, match="processor time"):
            await decode(one.decoder, SLOW)
        assert (one.killed, other.killed) == (["cpu"], [])
        for worker in service.workers:
            assert (await decode(worker.decoder, PHOTO)).kind == "photographs"
    finally:
        service.close()


async def test_a_silent_process_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.imaging.process.SILENCE_PER_CPU_SECOND", 0.1)
    service = Service(limits=Limits(cpu_seconds=5.0))
    try:
        one = service.workers[0]
        monkeypatch.setattr(LentProcess, "thumbnails", lambda self, *_: self.answer(1, most=1))  # nothing comes
        content = encoded(1400, 1000)
        with pytest.raises(TooExpensive, match="more time"):
            await decode(one.decoder, content)
        assert one.killed == ["time"]
    finally:
        service.close()


async def test_a_process_that_answers_with_nonsense_is_killed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = service.workers[0]

    def nonsense(self: LentProcess, *_: object) -> tuple[int, Kind]:
        raise self.failed(ValueError())

    with monkeypatch.context() as patch:
        patch.setattr(LentProcess, "identify", nonsense)
        with pytest.raises(UndecodableImage, match="makes its decoder crash"):
            await decode(one.decoder, PHOTO)
    assert one.killed == ["crash"]
    assert (await decode(one.decoder, PHOTO)).kind == "photographs"


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGKILL, "killed"), (signal.SIGABRT, "crash")])
async def test_the_end_of_a_process_is_told_to_the_worker_that_uses_it(
    service: Service, number: signal.Signals, reason: str
) -> None:
    await stopped(service)
    one, other = service.workers
    task = asyncio.create_task(decode(one.decoder, LARGE, "a"))
    await until(lambda: service.lent)
    (pid,) = service.host.do(lambda: [lane.process.pid for lane in service.pool._lanes if lane.loan])
    os.kill(pid, number)
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(Unavailable if reason == "killed" else UndecodableImage):
        await task
    assert (one.killed, other.killed) == ([reason], [])
    service.signal(signal.SIGCONT)
    assert (await decode(other.decoder, LARGE)).kind == "photographs"


async def test_an_idle_process_that_dies_is_counted_and_replaced(service: Service) -> None:
    one = service.workers[0]
    await decode(one.decoder, PHOTO)
    for number, reason in ((signal.SIGABRT, "crash"), (signal.SIGKILL, "killed")):
        (pid,) = service.pids
        os.kill(pid, number)
        await until(lambda reason=reason: one.killed == [reason])
        assert (await decode(one.decoder, PHOTO)).kind == "photographs"
        assert one.killed.pop() == reason


async def test_what_an_ended_worker_had_borrowed_is_ended_and_what_it_wanted_forgotten(service: Service) -> None:
    await stopped(service)
    one, other = service.workers
    lost = [asyncio.create_task(decode(one.decoder, LARGE, "a")) for _ in range(5)]
    await until(lambda: len(service.lent) == 2 and service.waiting == 3)
    borrowed = service.host.do(lambda: [lane.process.pid for lane in service.pool._lanes if lane.loan])
    service.dismiss(0)
    assert (service.lent, service.waiting) == ([], 0)
    await until(lambda: not any(map(runs, borrowed)))
    for task in lost:
        with pytest.raises(Unavailable):
            await task
    service.signal(signal.SIGCONT)
    assert (await decode(other.decoder, LARGE)).kind == "photographs"
    one.close()
    service.workers[0] = service.admit(0)
    assert (await decode(service.workers[0].decoder, LARGE)).kind == "photographs"


async def test_a_worker_that_hangs_keeps_nobody_waiting_for_long(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of which no thread answers stands for one that hangs, and lives again later."""
    one, other = service.workers
    monkeypatch.setattr("app.imaging.pool.GONE_SECONDS", -service.limits.cpu_seconds)  # of the image's deadline
    use, go_on = one.processes._use, threading.Event()

    def hang(*arguments: Any) -> None:
        go_on.wait(60)
        use(*arguments)

    monkeypatch.setattr(one.processes, "_use", hang)
    late = [asyncio.create_task(decode(one.decoder, LARGE, "a", seconds=0.5)) for _ in range(9)]
    await until(lambda: len(service.lent) == 2)
    assert (await decode(other.decoder, LARGE, "a")).kind == "photographs"
    for task in late:
        with pytest.raises(DeadlineExceeded):
            await task
    go_on.set()
    for worker in service.workers * 3:
        found = await asyncio.gather(*(decode(worker.decoder, LARGE, "a") for _ in range(3)))
        assert [one.kind for one in found] == ["photographs"] * 3
    await until(lambda: not service.lent and not service.waiting)
    assert not one.processes._waiting and not one.processes._lost


async def test_a_loan_that_was_ended_meanwhile_is_answered(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    one = service.workers[0]
    monkeypatch.setattr("app.imaging.pool.GONE_SECONDS", -service.limits.cpu_seconds)
    await decode(one.decoder, LARGE)
    service.signal(signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded):
        await decode(one.decoder, LARGE, seconds=0.1)
    await until(lambda: one.killed == ["time"])  # long before the process has been silent for too long
    assert (await decode(one.decoder, LARGE)).kind == "photographs"
    assert not one.processes._lost and not service.lent


async def test_a_worker_that_takes_the_place_of_one_that_ended_gets_the_sockets_again(service: Service) -> None:
    """Also of a process that was starting for an image of the one that ended."""
    await until(lambda: service.host.do(lambda: service.pool._possible))
    (ready,) = service.pids
    os.kill(ready, signal.SIGSTOP)
    one = service.workers[0]
    tasks = [asyncio.create_task(decode(one.decoder, LARGE, "a")) for _ in range(2)]

    def dismiss_while_it_starts() -> bool:
        lanes = [lane for lane in service.pool._lanes if lane.image]
        if len(lanes) == 2 and all(lane.process for lane in lanes) and not all(lane.loan for lane in lanes):
            service.pool.dismiss(0)
        return 0 not in service.pool._workers

    await until(lambda: service.host.do(dismiss_while_it_starts))
    for task in tasks:
        with pytest.raises(Unavailable):
            await task
    one.close()
    service.workers[0] = service.admit(0)
    await until(lambda: not service.host.do(lambda: [lane for lane in service.pool._lanes if lane.image]))
    assert (await decode(service.workers[0].decoder, LARGE)).kind == "photographs"


async def test_what_a_process_still_says_about_an_image_is_no_answer_to_the_next_one(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = service.workers[0]

    def no_memory(self: LentProcess, *_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(LentProcess, "thumbnails", no_memory)
        with pytest.raises(MemoryError):
            await decode(one.decoder, encoded(100, 100))
    np.testing.assert_array_equal((await decode(one.decoder, PHOTO)).thumbnails, photograph(PHOTO))


async def test_an_image_that_comes_as_its_worker_closes_is_answered_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = service.workers[0].processes

    def fail_all(*_: object) -> bool:
        processes._fail_all()  # in another thread
        return False

    monkeypatch.setattr(processes, "_send", fail_all)
    with pytest.raises(Unavailable, match="shutting down"):
        await decode(service.workers[0].decoder, LARGE)


async def test_an_image_that_is_given_up_is_withdrawn(service: Service) -> None:
    await stopped(service)
    decoder = service.workers[0].decoder
    tasks = [asyncio.create_task(decode(decoder, LARGE, "a")) for _ in range(2)]
    await until(lambda: len(service.lent) == 2)
    left = asyncio.create_task(decode(decoder, LARGE, "a"))
    await until(lambda: service.waiting == 1)
    left.cancel()
    with pytest.raises(DeadlineExceeded):
        await decode(decoder, LARGE, "a", seconds=0.05)
    await until(lambda: not service.waiting)  # though no lane has been free
    service.signal(signal.SIGCONT)
    await asyncio.gather(*tasks)
    await until(lambda: not service.lent and not service.waiting)
    assert not service.workers[0].processes._waiting


async def test_pixels_are_of_all_workers_together_and_free_when_a_loan_ends() -> None:
    """Images above SMALL_PIXELS; the budget has room for one at a time."""
    service = Service(limits=Limits(max_inflight_pixels=1_500_000))
    try:
        await stopped(service)
        one, other = (worker.decoder for worker in service.workers)
        crowd = [asyncio.create_task(decode(one, LARGE, "crowd")) for _ in range(2)]
        await until(lambda: len(service.lent) == 2)
        service.signal(signal.SIGCONT)
        await asyncio.gather(*crowd, *(decode(other, LARGE, client) for client in "abc"))
        await until(lambda: not service.lent)
        assert service.pool._claims.used == 0
    finally:
        service.close()


async def test_who_decodes_nothing_else_has_pixels_first(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images of another client wait for pixels."""
    let_go, order = threading.Event(), []
    thumbnails = LentProcess.thumbnails

    def wait(self: LentProcess, *sizes: int) -> np.ndarray:
        assert let_go.wait(60)
        return thumbnails(self, *sizes)

    async def note(decoder: Decoder, client: str) -> None:
        await decode(decoder, LARGE, client)
        order.append(client)

    await decode(service.workers[0].decoder, LARGE)
    monkeypatch.setattr(LentProcess, "thumbnails", wait)
    service.pool._claims.limit = 1_500_000
    one, other = (worker.decoder for worker in service.workers)
    tasks = [asyncio.create_task(note(one, "crowd")) for _ in range(4)]
    await until(lambda: service.pool._claims.used and service.pool._claims._others)
    tasks.append(asyncio.create_task(note(other, "late")))
    await until(lambda: service.pool._claims._first)
    let_go.set()
    await asyncio.gather(*tasks)
    assert order.index("late") <= 1


async def test_pixels_of_a_worker_that_ends_are_free(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.pool._claims.limit = 1_500_000
    one, other = service.workers
    with monkeypatch.context() as patch:
        patch.setattr(LentProcess, "thumbnails", lambda self, *_: self.answer(1, most=1))  # nothing comes
        lost = asyncio.create_task(decode(one.decoder, LARGE))
        await until(lambda: service.pool._claims.used)
    service.dismiss(0)
    assert service.pool._claims.used == 0
    with pytest.raises(Unavailable):
        await lost
    assert (await decode(other.decoder, LARGE)).kind == "photographs"
    one.close()
    service.workers[0] = service.admit(0)


async def test_without_pixels_in_time_an_image_is_given_up(service: Service) -> None:
    blocker = service.host.do(lambda: service.pool._claims.add(25_000_000))
    service.host.do(service.pool._claims.grant)
    decoder = service.workers[0].decoder
    with pytest.raises(DeadlineExceeded):
        await decode(decoder, LARGE, seconds=0.2)
    await until(lambda: not service.lent)
    service.host.do(lambda: service.pool._claims.drop(blocker))
    assert (await decode(decoder, LARGE)).kind == "photographs"


async def test_idle_processes_end() -> None:
    service = Service(idle_seconds=0.05)
    try:
        for _ in range(2):
            await decode(service.workers[0].decoder, PHOTO)
            await until(lambda: not service.pids)
        assert service.workers[0].killed == []
    finally:
        service.close()


async def test_a_process_that_is_killed_while_it_starts_is_started_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for lack of memory. That says nothing of the next one."""
    from app.imaging import pool as pools

    spawn, started = pools.spawn, []

    def kill(*arguments: Any) -> Any:
        process, channel = spawn(*arguments)
        started.append(process.pid)
        if len(started) < 3:
            os.kill(process.pid, signal.SIGKILL)
        return process, channel

    decoder = service.workers[0].decoder
    await decode(decoder, PHOTO)
    monkeypatch.setattr(pools, "spawn", kill)
    service.signal(signal.SIGKILL)
    await until(lambda: not service.pids)
    content = encoded(200, 150, "AVIF")
    np.testing.assert_array_equal((await decode(decoder, content)).thumbnails, photograph(content))
    assert len(started) == 3


def no_process(*_: object) -> Any:
    raise OSError(11, "Resource temporarily unavailable")


async def test_where_no_process_can_be_started_only_linear_formats_are_decoded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for patch in (("app.imaging.pool.spawn", no_process), ("app.imaging.pool.WORKER", "app.no_such_module")):
        caplog.clear()
        with monkeypatch.context() as context, caplog.at_level(logging.WARNING):
            context.setattr(*patch)
            service = Service()
            try:
                await until(lambda service=service: service.pool._possible is False)
                for worker in service.workers:
                    content = encoded(200, 150, "JPEG")
                    found = await decode(worker.decoder, content)
                    np.testing.assert_array_equal(found.thumbnails, photograph(content))
                    with pytest.raises(UnsupportedMediaType, match="AVIF is not accepted here"):
                        await decode(worker.decoder, encoded(200, 150, "AVIF"))
                await until(lambda: caplog.text)
            finally:
                service.close()
        assert caplog.text.count("decoding processes cannot be started") == 1  # not for each image
        assert "AVIF is not accepted" in caplog.text


async def test_a_process_that_cannot_be_started_later_is_tried_again(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = service.workers[0].decoder
    await decode(decoder, PHOTO)
    (pid,) = service.pids
    with monkeypatch.context() as context:
        context.setattr("app.imaging.pool.spawn", no_process)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not service.pids)
        np.testing.assert_array_equal((await decode(decoder, PHOTO)).thumbnails, photograph(PHOTO))
        assert "a decoding process cannot be started: [Errno 11]" in caplog.text
    await decode(decoder, PHOTO)
    assert len(service.pids) == 1


async def test_a_socket_that_does_not_arrive_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when this process may open no more files."""
    receive, losing = socket.recv_fds, True

    def receive_fewer(*arguments: Any) -> Any:
        content, descriptors, flags, address = receive(*arguments)
        while losing and descriptors:
            os.close(descriptors.pop())
        return content, descriptors, flags, address

    monkeypatch.setattr(borrowed_processes.socket, "recv_fds", receive_fewer)
    service = Service()
    try:
        decoder = service.workers[0].decoder
        for _ in range(2):
            with pytest.raises(Unavailable, match="may not open more files"):
                await decode(decoder, PHOTO)
        losing = False
        assert (await decode(decoder, PHOTO)).kind == "photographs"
        assert len(service.pids) == 1
    finally:
        service.close()


async def test_closing_answers_everybody_and_frees_the_lanes(service: Service) -> None:
    await stopped(service)
    one, other = service.workers
    tasks = [asyncio.create_task(decode(one.decoder, LARGE, "a")) for _ in range(4)]
    await until(lambda: len(service.lent) == 2 and service.waiting == 2)
    await asyncio.to_thread(one.processes.close)
    for task in tasks:
        with pytest.raises(Unavailable, match="shutting down"):
            await task
    with pytest.raises(Unavailable, match="shutting down"):
        await decode(one.decoder, LARGE)
    await until(lambda: not service.lent and not service.waiting)
    service.signal(signal.SIGCONT)
    assert (await decode(other.decoder, LARGE)).kind == "photographs"
    one.processes.close = lambda: None  # type: ignore[method-assign]


async def test_without_its_pool_a_worker_answers_at_once(service: Service) -> None:
    await stopped(service)
    one = service.workers[0]
    tasks = [asyncio.create_task(decode(one.decoder, LARGE, "a")) for _ in range(4)]
    await until(lambda: service.waiting == 2)
    pids = service.pids
    service.host.close()
    for task in tasks:
        with pytest.raises(Unavailable):
            await task
    with pytest.raises(Unavailable):
        await decode(one.decoder, LARGE)
    assert not any(map(runs, pids))
    service.host.close = lambda: None  # type: ignore[method-assign]


async def test_a_pool_that_does_not_read_holds_no_event_loop() -> None:
    """As when the supervisor is stopped: images are refused when no more orders fit."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    processes = BorrowedProcesses(Membership(theirs, 3), cpu_seconds=1.0, on_kill=lambda _: None)
    decoder = Decoder(processes=1, limits=Limits(), sizes=SIZES, borrowed=processes)
    with ours:
        tasks = [asyncio.create_task(decode(decoder, PHOTO)) for _ in range(2000)]
        await until(lambda: any(task.done() for task in tasks))
        with pytest.raises(Unavailable, match="too many images wait"):
            await next(task for task in tasks if task.done())
        processes.close()
        for task in tasks:
            with pytest.raises(Unavailable):
                await task
        decoder.close()


async def test_the_clients_name_may_be_of_any_length(service: Service) -> None:
    for client in ("", "x" * 1000, "\N{SNOWMAN}" * 200):
        assert (await decode(service.workers[0].decoder, PHOTO, client)).kind == "photographs"


FORK = """
import os, selectors, signal
from app.imaging.limits import Limits
from app.imaging.pool import Pool
from app.imaging.pool_protocol import ORDER, Ask

def opened():
    return {name for name in os.listdir("/proc/self/fd")}

before = opened()
selector = selectors.DefaultSelector()
pool = Pool(1, Limits())
pool.open(selector)
own, other = pool.admit(0), pool.admit(1)
while not pool._possible:
    for key, _ in selector.select():
        key.data()
other.channel.send(ORDER.pack(Ask.WANT, 1, 0, 1e9))
for key, _ in selector.select():
    key.data()
(lent,) = pool.pids()
os.kill(lent, signal.SIGKILL)
pool.bury(*os.waitpid(lent, 0))  # its lane has not noticed
other.channel.close()
pid = os.fork()
if pid == 0:
    pool.leave()
    selector.close()
    left = opened() - before
    os._exit(0 if left == {str(own.channel.fileno())} else 1)
assert os.waitpid(pid, 0)[1] == 0
own.channel.close()
pool.close()
"""


def test_a_forked_worker_keeps_nothing_that_is_the_supervisors() -> None:
    """So that processes notice when the supervisor ends."""
    done = subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
