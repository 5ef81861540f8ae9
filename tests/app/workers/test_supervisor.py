"""The supervisor alone, in a fresh interpreter: what it does when workers end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import ROOT

PROGRAM = """
import os, signal, socket, sys, time
from app.errors import LoadFailed
from app.workers import supervisor as module
from app.workers.board import Board
from app.workers.membership import Membership
from app.workers.supervisor import Supervisor, WorkersError

module.PAUSES = (0.0, 0.0)

class Models:
    names = ("one", "bad")
    def prepare(self, name):
        if name == "bad":
            raise LoadFailed("it is bad")
        return "digest"
    def take_over(self):
        print("taken over", flush=True)
    def drop(self):
        print("dropped", flush=True)

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def wait(worker, answer=None):
    # As a worker does: until SIGTERM, answering messages.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    worker.serve()
    say("worker", worker.number, os.getpid(), worker.replaces)
    parent = os.getppid()
    while os.getppid() == parent:
        while message := worker._post.receive(worker.number):
            say(worker.number, message["kind"], message["content"])
            if message["kind"] == "prepare":
                worker._post.send(worker.mail.supervisor, "answer", answer, worker.number, message["number"])
        time.sleep(0.01)

class NoPool:
    def open(self, selector): pass
    def admit(self, number): return Membership(socket.socketpair()[0], 3)
    def leave(self): pass
    def dismiss(self, number): say("dismissed", number)
    def bury(self, pid, exit_code): pass
    def patience(self): return None
    def tend(self): pass
    def close(self): say("pool closed")

def merge(one, other):
    return one + other

{work}

board = Board(2)
try:
    Supervisor(board, Models(), work, merge=merge, stop_seconds=30, pool=NoPool()).run([])
except WorkersError as error:
    say("error:", error)
say("published", board.supervisor.published()[8:])
"""


class Program:
    def __init__(self, work: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.replace("{work}", work)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
            stderr=subprocess.PIPE,  # no terminal
        )

    def line(self, begins: str) -> list[str]:
        """The words of the next line that begins so."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(begins):
                return line.split()
        assert self.process.stderr is not None
        raise AssertionError(self.process.stderr.read())

    def until(self, text: str, times: int) -> str:
        """What it says until this text has come so often."""
        said = ""
        while said.count(text) < times:
            said += " ".join(self.line("")) + "\n"
        return said

    def workers(self, count: int = 2) -> dict[int, int]:
        """Process ids by number, of so many that start."""
        found = [self.line("worker ") for _ in range(count)]
        return {int(number): int(pid) for _, number, pid, _ in found}

    def end(self, number: int = signal.SIGTERM) -> str:
        """The rest of what it says, after the signal."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=30)[0]


@pytest.fixture
def program() -> Iterator[Callable[[str], Program]]:
    running: list[Program] = []

    def start(work: str) -> Program:
        running.append(Program(work))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.communicate()


def test_a_killed_worker_is_replaced_and_its_counts_are_kept(program: Callable[[str], Program]) -> None:
    running = program("def work(worker):\n    worker.part.publish(b'x')\n    wait(worker)")
    pids = running.workers()
    os.kill(pids[1], signal.SIGKILL)
    assert running.line("worker 1")[3] == "SIGKILL"
    os.kill(pids[0], signal.SIGTERM)
    assert running.line("worker 0")[3:] == ["exit", "code", "0"]
    assert "published b'xxxx'" in running.end()
    assert running.process.returncode == 0


def test_ctrl_c_ends_all_workers(program: Callable[[str], Program]) -> None:
    running = program("def work(worker):\n    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))\n    wait(worker)")
    pids = running.workers()
    running.end(signal.SIGINT)
    assert running.process.returncode == 0
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        ("worker.fail('FEEDBACK_DIR: it is full')\n    return 1", "FEEDBACK_DIR: it is full"),
        ("sys.exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
        ("raise ZeroDivisionError", "exit code 1"),
    ],
)
def test_a_worker_that_cannot_start_stops_the_start(program: Callable[[str], Program], work: str, reason: str) -> None:
    running = program(f"def work(worker):\n    if worker.number == 0:\n        wait(worker)\n    {work}")
    assert running.line("error:")[1:] == reason.split()


def test_a_worker_for_which_no_socket_can_be_opened_stops_the_start(program: Callable[[str], Program]) -> None:
    running = program(
        "def admit(self, number):\n"
        "    raise OSError(24, 'Too many open files')\n"
        "NoPool.admit = admit\n"
        "def work(worker):\n"
        "    wait(worker)"
    )
    assert running.line("error:")[1:] == ["a", "worker", "cannot", "be", "started:", "Too", "many", "open", "files"]


def test_workers_that_always_end_at_once_end_the_service(program: Callable[[str], Program]) -> None:
    running = program(
        "def work(worker):\n"
        "    worker.serve()\n"
        "    if worker.number == 0:\n"
        "        wait(worker)\n"
        "    time.sleep(0.05)\n"
        "    sys.exit(5)"
    )
    line = " ".join(running.line("error:"))
    assert "8 workers ended as soon as they had started, the last one with exit code 5" in line


def test_all_workers_load_a_model_or_none(program: Callable[[str], Program]) -> None:
    running = program("def work(worker):\n    wait(worker)")
    running.workers()
    running.process.send_signal(signal.SIGHUP)
    said = running.until("'reason': 'it is bad'", 2)
    assert said.count("loaded {'name': 'one', 'reason': None}") == 2
    assert said.index("taken over") < said.index("dropped")


def test_a_model_that_one_worker_cannot_load_is_dropped_by_all(program: Callable[[str], Program]) -> None:
    running = program(
        "Models.names = ('one',)\ndef work(worker):\n    wait(worker, None if worker.number else 'too little memory')"
    )
    running.workers()
    running.process.send_signal(signal.SIGHUP)
    said = running.until("loaded {'name': 'one', 'reason': 'too little memory'}", 2)
    assert "dropped" in said and "taken over" not in said


def test_a_worker_that_dies_while_it_loads_begins_with_the_new_model(program: Callable[[str], Program]) -> None:
    running = program(
        "Models.names = ('one',)\n"
        "def work(worker):\n"
        "    if worker.number and worker.replaces is None:\n"
        "        worker.serve()\n"
        "        say('worker', worker.number, os.getpid(), None)\n"
        "        parent = os.getppid()\n"
        "        while os.getppid() == parent:\n"
        "            message = worker._post.receive(worker.number)\n"
        "            if message and message['kind'] == 'prepare':\n"
        "                os.kill(os.getpid(), 9)\n"
        "            time.sleep(0.01)\n"
        "    wait(worker)"
    )
    running.workers()
    running.process.send_signal(signal.SIGHUP)
    running.line("taken over")
    assert running.line("worker 1")[3] == "SIGKILL"
    running.end()
    assert running.process.returncode == 0
