"""A process that only decodes images. The service kills it if an image takes too much time or memory.

    process = DecodingProcess(memory_bytes=400 << 20, cpu_seconds=2.0)     # OSError if it cannot start
    pixels, kind = process.identify(content, max_pixels)
    thumbnails = process.thumbnails(views=1, height=32, width=32)     # or process.decline()
    process.end()

It is a fresh interpreter that imports only `app.imaging`. It inherits one socket and no secrets. One thread at a time
may use it; any thread may call `end`.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageTooLarge, Problem, TooExpensive, UndecodableImage, UnsupportedMediaType
from .kinds import Kind, kind_of
from .messages import ANSWER, DECODE, IDENTIFIED, IDENTITY, PROBLEM, READY, REQUEST, THUMBNAILS, receive

START_SECONDS = 30.0  # for importing Pillow and NumPy on a busy machine
SILENCE_PER_CPU_SECOND = 10.0  # wall-clock time that a second of CPU time may take on a busy machine
LONGEST_TEXT = 4096  # bytes of an error message
PROBLEMS = {kind.code: kind for kind in (ImageTooLarge, TooExpensive, UndecodableImage, UnsupportedMediaType)}
KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME")


class DecoderEnded(Exception):
    """The process has ended while it had an image; `reason` is "cpu", "memory", "time" or "crash"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def problem(self) -> Problem:
        """The error that the client gets."""
        if self.reason == "crash":
            return UndecodableImage("the image makes its decoder crash")
        what = {"cpu": "processor time", "memory": "memory", "time": "time"}[self.reason]
        return TooExpensive(f"decoding the image takes more {what} than is allowed")


class DecodingProcess:
    """memory_bytes: memory that an image may allocate; cpu_seconds: its CPU time, with reading the header."""

    def __init__(self, *, memory_bytes: int, cpu_seconds: float) -> None:
        """Raises OSError if the process cannot be started."""
        self._silence_seconds = SILENCE_PER_CPU_SECOND * cpu_seconds
        self._channel, theirs = socket.socketpair()
        try:
            with theirs:
                self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 (no shell, no input in the command)
                    [sys.executable, "-P", "-m", f"{__package__}.worker", str(memory_bytes), str(cpu_seconds)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                    process_group=0,  # it must not get signals sent to the service's group
                )
        except BaseException:
            self._channel.close()
            raise
        try:
            self._channel.settimeout(START_SECONDS)
            restrictions = self._take(READY, most=100).decode()
        except (DecoderEnded, ValueError):
            self.end()
            raise OSError("a decoding process does not start") from None
        self.restrictions = frozenset(restrictions.split(",")) - {""}
        self._channel.settimeout(self._silence_seconds)

    @property
    def pid(self) -> int:
        return self._process.pid

    def identify(self, content: bytes, max_pixels: int) -> tuple[int, Kind]:
        """Read the image's header. Returns the memory that decoding will take, in pixels of four bytes, and the kind.

        Then `thumbnails` or `decline` must follow. Raises a Problem, or DecoderEnded.
        """
        try:
            self._channel.sendall(REQUEST.pack(len(content), max_pixels))
            self._channel.sendall(content)
        except OSError as error:
            raise self._ended(error) from None
        try:
            pixels, width, height = IDENTITY.unpack(self._take(IDENTIFIED, most=IDENTITY.size))
        except struct.error as error:
            raise self._ended(error) from None
        return pixels, kind_of(width, height)

    def thumbnails(self, views: int, height: int, width: int) -> NDArray[np.uint8]:
        """Decode the identified image to uint8 RGB [k, height, width, 3]; see EncodedImage.thumbnails.

        Raises a Problem, or DecoderEnded.
        """
        self._say(DECODE.pack(views, height, width))
        one = height * width * 3
        content = self._take(THUMBNAILS, most=views * one)
        if not content or len(content) % one:
            raise self._ended(ValueError())
        return np.frombuffer(content, np.uint8).reshape(-1, height, width, 3)

    def decline(self) -> None:
        """Skip the identified image. Raises DecoderEnded."""
        self._say(DECODE.pack(0, 0, 0))

    def end(self) -> None:
        """Kill the process. Any thread may call this; a thread that waits for an answer gets DecoderEnded."""
        self._process.kill()
        self._process.wait()
        self._channel.close()

    def _say(self, word: bytes) -> None:
        try:
            self._channel.sendall(word)
        except OSError as error:
            raise self._ended(error) from None

    def _take(self, expected: int, most: int = 0) -> bytes:
        """The bytes of the answer. Raises a Problem, or DecoderEnded."""
        try:
            kind, number = ANSWER.unpack(receive(self._channel, ANSWER.size))
            if kind not in (PROBLEM, expected) or number > max(most, LONGEST_TEXT if kind == PROBLEM else 0):
                raise ValueError("a decoding process answers with something else")
            content = receive(self._channel, number)
            if kind == PROBLEM:
                code, detail = json.loads(content)
                problem = PROBLEMS[code](str(detail))
        except (OSError, EOFError, ValueError, KeyError, TypeError, struct.error) as error:
            raise self._ended(error) from None
        if kind == PROBLEM:
            raise problem
        return content

    def _ended(self, error: Exception) -> DecoderEnded:
        """The reason why it ended. Kills a process that still runs but is silent or sends invalid answers."""
        if isinstance(error, TimeoutError):
            self.end()
            return DecoderEnded("time")
        try:
            status = self._process.wait(1.0)  # the socket closes a moment before the process is gone
        except subprocess.TimeoutExpired:
            status = None
        self.end()
        reasons = {
            -signal.SIGPROF: "cpu",
            -signal.SIGKILL: "memory",
        }  # Linux kills a process if the machine runs out of memory
        return DecoderEnded(reasons.get(status, "crash") if status is not None else "crash")


def _environment() -> dict[str, str]:
    """The environment of the process: no secrets, no settings, one thread for NumPy's libraries."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    folder = str(Path(__file__).parents[len(__package__.split("."))])
    return kept | {"PYTHONPATH": folder, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
