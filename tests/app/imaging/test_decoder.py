import asyncio
import io
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.errors import DeadlineExceeded, TooExpensive, Unavailable, UndecodableImage, UnsupportedMediaType
from app.imaging import decoder as decoders
from app.imaging.decode import EncodedImage
from app.imaging.decoder import Decoder
from app.imaging.formats import is_minute, is_tiny
from app.imaging.job import Decoded
from app.imaging.kinds import Kind, Sizes
from app.imaging.lanes import Lanes
from app.imaging.limits import SMALL_BYTES, Limits
from app.imaging.own_processes import OwnProcesses
from app.imaging.process import DecodingProcess


def own(decoder: Decoder) -> OwnProcesses:
    assert isinstance(decoder.processes, OwnProcesses)
    return decoder.processes


def lanes_of(decoder: Decoder) -> Lanes:
    return own(decoder)._lanes


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


def encoded(width: int, height: int, kind: str = "PNG", plain: bool = False, **options: object) -> bytes:
    """Of noise, or `plain`: of one colour, in few bytes."""
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 2 if plain else 256, (height, width, 3), dtype=np.uint8)
    pixels = np.full_like(pixels, 7) if plain else pixels
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


SIZES: Sizes = {"thumbnails": (32, 32), "photographs": (64, 64)}
PHOTO = encoded(300, 200)  # is not tiny, and small
LARGE = encoded(1400, 1000, "PNG")  # above SMALL_PIXELS


def hand_on(_: np.ndarray) -> "Future[str]":
    done: Future[str] = Future()
    done.set_result("answer")
    return done


async def decode(decoder: Decoder, content: bytes, client: str = "", seconds: float = 60) -> Decoded[str]:
    return await decoder.decode(content, 1, soon(seconds), hand_on, client)


def photograph(content: bytes) -> np.ndarray:
    return EncodedImage.identify(content, 25_000_000).thumbnails(1, 64, 64)


@pytest.fixture
def killed() -> list[str]:
    return []


@pytest.fixture
def decoder(killed: list[str]) -> Iterator[Decoder]:
    decoder = Decoder(processes=1, limits=Limits(cpu_seconds=0.5), sizes=SIZES, on_kill=killed.append)
    yield decoder
    decoder.close()


class Blocked:
    """Stands for a decoding process whose images take until they are let go."""

    def __init__(self, **_: object) -> None:
        self.restrictions = frozenset()
        self.pid = 0
        self.ended = threading.Event()

    alive = True
    let_go = threading.Event()
    decoding: list[bytes] = []

    def identify(self, content: bytes, *_: object) -> tuple[int, Kind]:
        self.content = content
        return 1, "photographs"

    def thumbnails(self, *_: int) -> np.ndarray:
        self.decoding.append(self.content)
        assert self.let_go.wait(60)
        return np.zeros((1, 32, 32, 3), np.uint8)

    def decline(self) -> None:
        pass

    def end(self) -> None:
        self.ended.set()


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Blocked]]:
    monkeypatch.setattr("app.imaging.own_processes.DecodingProcess", Blocked)
    Blocked.let_go.clear()
    Blocked.decoding.clear()
    yield Blocked
    Blocked.let_go.set()


async def until(condition: object) -> None:
    async with asyncio.timeout(60):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_a_tiny_picture_is_decoded_in_the_service_and_others_in_a_process(decoder: Decoder, cat: bytes) -> None:
    tiny = await decode(decoder, cat)
    assert decoder.processes.pids() == []
    np.testing.assert_array_equal(tiny.thumbnails, EncodedImage.identify(cat, 10_000).thumbnails(1))
    photo = await decode(decoder, PHOTO)
    assert len(decoder.processes.pids()) == 1
    np.testing.assert_array_equal(photo.thumbnails, photograph(PHOTO))
    assert (tiny.kind, photo.kind) == ("thumbnails", "photographs")
    assert photo.answer == "answer"
    assert photo.seconds > 0


async def test_a_minute_picture_is_decoded_where_it_is_and_a_larger_tiny_one_in_a_thread(
    decoder: Decoder, cat: bytes
) -> None:
    threads: list[str] = []

    def note(images: np.ndarray) -> "Future[str]":
        threads.append(threading.current_thread().name)
        return hand_on(images)

    larger = encoded(100, 100, "JPEG", quality=10)
    assert is_minute(cat) and is_tiny(larger) and not is_minute(larger)
    for content in (cat, larger):
        await decoder.decode(content, 1, soon(), note)
    assert threads[0] == threading.current_thread().name
    assert threads[1].startswith("decode-tiny")


@pytest.mark.parametrize("gate", ["is_minute", "is_tiny"])
async def test_a_picture_that_is_larger_than_its_first_header_says_goes_to_a_process(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, gate: str
) -> None:
    """Whatever bytes make this service and Pillow find different sizes."""
    monkeypatch.setattr(decoders, "is_minute", lambda _: gate == "is_minute")
    monkeypatch.setattr(decoders, "is_tiny", lambda _: True)
    threads: list[str] = []

    def note(images: np.ndarray) -> "Future[str]":
        threads.append(threading.current_thread().name)
        return hand_on(images)

    large = [encoded(300, 300), LARGE, encoded(300, 300, "JPEG"), encoded(100, 100, "JPEG", progressive=True)]
    for content in large:
        found = await decoder.decode(content, 1, soon(), note)
        np.testing.assert_array_equal(found.thumbnails, photograph(content))
    assert len(threads) == len(large) and not any("tiny" in name or "Main" in name for name in threads)


async def test_an_image_whose_process_is_killed_by_the_system_is_not_to_blame(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, killed: list[str]
) -> None:
    identify = DecodingProcess.identify

    def kill(self: DecodingProcess, *arguments: Any) -> tuple[int, Kind]:
        os.kill(self.pid, 9)
        return identify(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DecodingProcess, "identify", kill)
        with pytest.raises(Unavailable, match="killed"):
            await decode(decoder, PHOTO)
    assert killed == ["killed"]
    assert (await decode(decoder, PHOTO)).kind == "photographs"


async def test_what_a_process_still_says_about_an_image_is_no_answer_to_the_next_one(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(self: DecodingProcess, *_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(DecodingProcess, "thumbnails", no_memory)
        with pytest.raises(MemoryError):
            await decode(decoder, encoded(100, 100))
    np.testing.assert_array_equal((await decode(decoder, PHOTO)).thumbnails, photograph(PHOTO))


async def test_a_process_that_is_killed_while_it_starts_says_nothing_of_the_next_one(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.sandbox import process as processes

    spawn = processes.spawn

    def kill(*arguments: Any) -> Any:
        process, channel = spawn(*arguments)
        os.kill(process.pid, 9)
        return process, channel

    with monkeypatch.context() as patch:
        patch.setattr(processes, "spawn", kill)
        assert not await asyncio.to_thread(decoder.processes.check)
        with pytest.raises(Unavailable, match="killed"):
            await decode(decoder, PHOTO)
    content = encoded(200, 150, "AVIF")
    np.testing.assert_array_equal((await decode(decoder, content)).thumbnails, photograph(content))


async def test_of_many_minute_pictures_at_once_threads_decode_most(decoder: Decoder, cat: bytes) -> None:
    """Else a batch, or many clients, would hold the event loop."""
    threads: list[str] = []

    def note(images: np.ndarray) -> "Future[str]":
        threads.append(threading.current_thread().name)
        return hand_on(images)

    for _ in range(2):  # the next iteration has turns again
        await asyncio.gather(*(decoder.decode(cat, 1, soon(), note) for _ in range(10)))
    assert threads.count(threading.current_thread().name) == 2 * decoders.MOST_AT_ONCE
    assert len(threads) == 20


async def test_pictures_one_after_the_other_need_one_process(decoder: Decoder) -> None:
    for _ in range(6):
        await decode(decoder, PHOTO)
    assert len(decoder.processes.pids()) == 1


async def test_an_error_of_what_the_thumbnails_are_handed_to_reaches_the_caller(decoder: Decoder, cat: bytes) -> None:
    failed: Future[str] = Future()
    failed.set_exception(Unavailable("the engine is not running"))
    for content in (cat, PHOTO):
        with pytest.raises(Unavailable, match="the engine"):
            await decoder.decode(content, 1, soon(), lambda _: failed)


async def test_at_the_deadline_the_caller_learns_what_took_the_time(decoder: Decoder) -> None:
    unanswered: Future[str] = Future()
    with pytest.raises(DeadlineExceeded, match="no answer within the deadline"):
        await decoder.decode(encoded(20, 20), 1, soon(0.2), lambda _: unanswered)
    assert unanswered.cancelled()


@pytest.mark.parametrize("kind", ["thumbnails", "photographs"])
async def test_a_caller_may_overrule_the_kind(decoder: Decoder, cat: bytes, kind: Kind) -> None:
    for content in (cat, PHOTO):
        answer = await decoder.decode(content, 1, soon(), hand_on, kind=kind)
        assert answer.kind == kind
        expected = EncodedImage.identify(content, 1_000_000).thumbnails(1, *SIZES[kind])
        np.testing.assert_array_equal(answer.thumbnails, expected)


async def test_a_large_picture_is_the_same_from_every_lane(decoder: Decoder) -> None:
    plain = Image.new("RGB", (2000, 1000), (9, 8, 7))  # few bytes, many pixels: the small lane passes it on
    out = io.BytesIO()
    plain.save(out, "PNG")
    for content in (LARGE, out.getvalue()):
        answers = await asyncio.gather(*(decode(decoder, content, client) for client in "aabbc"))
        expected = photograph(content)
        for answer in answers:
            np.testing.assert_array_equal(answer.thumbnails, expected)


async def test_each_format_is_decoded_in_a_confined_process(decoder: Decoder) -> None:
    for kind in decoders.EncodedImage.identify.__globals__["DECODERS"]:
        content = encoded(200, 150, kind)
        answer = await decode(decoder, content)
        np.testing.assert_array_equal(answer.thumbnails, photograph(content))


async def test_an_image_over_its_time_is_refused_and_others_go_on(
    decoder: Decoder, killed: list[str], cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However busy the machine is, the limit of processor time is reached first.
    monkeypatch.setattr("app.imaging.process.SILENCE_PER_CPU_SECOND", 1000.0)
    # 24 million pixels of noise as interlaced PNG would do; a WebP of that size takes longest of all ordinary pictures.
    slow = encoded(2800, 2800, "WEBP", method=0, lossless=True, quality=0)
    own(decoder).limits = Limits(cpu_seconds=0.05)  # for processes that start from now on
    with pytest.raises(TooExpensive, match="processor time"):
        await decode(decoder, slow)
    assert killed == ["cpu"]
    assert (await decode(decoder, cat)).thumbnails.shape == (1, 32, 32, 3)
    own(decoder).limits = Limits()
    assert (await decode(decoder, slow)).thumbnails.shape == (1, 64, 64, 3)
    assert killed == ["cpu"]


async def test_a_refused_image_has_its_reason(decoder: Decoder, killed: list[str]) -> None:
    with pytest.raises(UndecodableImage, match="the PNG is cut short or corrupt"):
        await decode(decoder, PHOTO[: len(PHOTO) // 2])
    with pytest.raises(UnsupportedMediaType, match="TIFF"):
        await decode(decoder, b"II*\0" + bytes(100_000))
    assert killed == []


async def test_no_more_processes_live_than_there_are_lanes(decoder: Decoder) -> None:
    for _ in range(8):
        with pytest.raises(UndecodableImage):
            await decode(decoder, PHOTO[: len(PHOTO) // 2])
    assert len(decoder.processes.pids()) <= 3  # one general lane, and the two others


async def test_a_process_that_dies_while_idle_is_replaced_and_no_image_is_refused(
    decoder: Decoder, killed: list[str]
) -> None:
    expected = (await decode(decoder, PHOTO)).thumbnails
    for signal, reason in ((6, "crash"), (9, "killed")):
        (pid,) = decoder.processes.pids()
        os.kill(pid, signal)
        await until(lambda pid=pid: not runs(pid))
        np.testing.assert_array_equal((await decode(decoder, PHOTO)).thumbnails, expected)
        assert killed.pop() == reason and not killed
        assert decoder.processes.pids() != [pid]


def runs(pid: int) -> bool:
    """Whether the process has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_idle_processes_end() -> None:
    decoder = Decoder(processes=1, limits=Limits(), sizes=SIZES, idle_seconds=0.05)
    await decode(decoder, PHOTO)
    await until(lambda: decoder.processes.pids() == [])
    await decode(decoder, PHOTO)
    decoder.close()
    assert decoder.processes.pids() == []


async def test_at_the_deadline_the_caller_is_answered_whatever_the_decoder_does(
    blocked: type[Blocked], decoder: Decoder
) -> None:
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await decode(decoder, PHOTO, seconds=0.1)
    assert time.monotonic() - begun < 30
    assert blocked.decoding == [PHOTO]  # it goes on: nobody waits for it
    blocked.let_go.set()


async def test_the_result_of_a_cancelled_image_is_not_handed_on(blocked: type[Blocked], decoder: Decoder) -> None:
    handed: list[np.ndarray] = []
    call = asyncio.create_task(decoder.decode(PHOTO, 1, soon(), lambda images: handed.append(images)))  # type: ignore
    await until(lambda: blocked.decoding)
    call.cancel()
    await asyncio.wait({call})
    blocked.let_go.set()
    await until(lambda: not lanes_of(decoder)._queue._held)
    assert handed == []


async def test_a_decode_that_has_not_begun_is_withdrawn(blocked: type[Blocked], decoder: Decoder) -> None:
    busy = [asyncio.create_task(decode(decoder, PHOTO + bytes(100_000), "a")) for _ in range(1)]
    await until(lambda: len(blocked.decoding) == 1)
    left = asyncio.create_task(decode(decoder, LARGE + b"left", "a"))
    with pytest.raises(DeadlineExceeded):
        await decode(decoder, LARGE + b"late", "a", seconds=0.05)
    left.cancel()
    await asyncio.wait({left})
    assert lanes_of(decoder)._queue.empty
    blocked.let_go.set()
    await asyncio.gather(*busy)
    assert len(blocked.decoding) == 1


async def test_another_client_does_not_wait_for_one_that_holds_all_lanes(
    blocked: type[Blocked], decoder: Decoder
) -> None:
    crowd = [asyncio.create_task(decode(decoder, LARGE + bytes([n]), "crowd")) for n in range(5)]
    await until(lambda: len(blocked.decoding) == 1)
    other = asyncio.create_task(decode(decoder, LARGE + b"other", "other"))
    await until(lambda: LARGE + b"other" in blocked.decoding)
    assert len(blocked.decoding) == 2  # one of the crowd, in the one general lane
    blocked.let_go.set()
    await asyncio.gather(*crowd, other)


async def test_small_pictures_do_not_wait_behind_large_ones_of_the_same_client(
    blocked: type[Blocked], decoder: Decoder
) -> None:
    large = [asyncio.create_task(decode(decoder, LARGE + bytes([n]), "one")) for n in range(5)]
    await until(lambda: len(blocked.decoding) == 1)
    small = encoded(100, 100)
    assert not is_tiny(small) and len(small) <= SMALL_BYTES
    waiting = asyncio.create_task(decode(decoder, small, "one"))
    await until(lambda: small in blocked.decoding)
    blocked.let_go.set()
    await asyncio.gather(*large, waiting)


async def test_lanes_go_to_the_client_that_holds_fewest(blocked: type[Blocked], decoder: Decoder) -> None:
    crowd = [asyncio.create_task(decode(decoder, LARGE + bytes([n]), "crowd")) for n in range(4)]
    await until(lambda: len(blocked.decoding) == 1)
    others = [asyncio.create_task(decode(decoder, LARGE + name.encode(), name)) for name in ("x", "y")]
    await until(lambda: lanes_of(decoder)._queue._waiting.keys() == {"crowd", "y"})
    blocked.let_go.set()
    await asyncio.gather(*crowd, *others)
    assert blocked.decoding.index(LARGE + b"y") <= 3


async def test_closing_ends_processes_and_answers_everybody(blocked: type[Blocked], decoder: Decoder) -> None:
    calls = [asyncio.create_task(decode(decoder, LARGE + bytes([n]), "one")) for n in range(3)]
    await until(lambda: blocked.decoding)
    closing = asyncio.create_task(asyncio.to_thread(decoder.close))
    await until(lambda: lanes_of(decoder).closed)
    with pytest.raises(Unavailable):
        await decode(decoder, LARGE)
    blocked.let_go.set()
    await closing
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, Unavailable) for result in results) == 2


async def test_closing_kills_a_real_process_in_the_middle_of_its_work(decoder: Decoder) -> None:
    own(decoder).limits = Limits(cpu_seconds=30)
    await decode(decoder, PHOTO)
    pids = decoder.processes.pids()
    slow = encoded(2800, 2800, "WEBP", method=0, lossless=True, quality=0)
    call = asyncio.create_task(decode(decoder, slow))
    await until(lambda: lanes_of(decoder)._queue._held)
    await asyncio.to_thread(decoder.close)
    with pytest.raises(Unavailable):
        await call
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_without_processes_only_linear_formats_are_decoded(
    monkeypatch: pytest.MonkeyPatch, decoder: Decoder, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: object) -> DecodingProcess:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("app.imaging.own_processes.DecodingProcess", refuse)
    assert not decoder.processes.check()
    assert "cannot be started" in caplog.text
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        content = encoded(200, 150, kind)
        expected = photograph(content)
        np.testing.assert_array_equal((await decode(decoder, content)).thumbnails, expected)
    with pytest.raises(UnsupportedMediaType, match="AVIF is not accepted here"):
        await decode(decoder, encoded(200, 150, "AVIF"))


async def test_start_one_reports_that_processes_can_be_started(decoder: Decoder) -> None:
    assert await asyncio.to_thread(decoder.processes.check)
    assert decoder.processes.pids() == []


async def test_errors_after_decoding_come_through(decoder: Decoder, cat: bytes) -> None:
    def refuse(_: np.ndarray) -> "Future[str]":
        raise Unavailable("the engine is not running")

    for content in (cat, PHOTO):
        with pytest.raises(Unavailable, match="engine"):
            await decoder.decode(content, 1, soon(), refuse)


async def test_no_process_is_started_after_the_end_and_nothing_is_logged(
    blocked: type[Blocked], decoder: Decoder, caplog: pytest.LogCaptureFixture
) -> None:
    decoder.close()
    assert not decoder.processes.check()
    assert decoder.processes.pids() == []
    assert caplog.text == ""
