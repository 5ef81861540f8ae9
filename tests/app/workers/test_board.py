"""What processes tell each other in shared memory."""

import os

import pytest

from app.workers.board import BYTES, CONTENT_BYTES, MAX_ROWS, MAX_WAITERS, PLACES, ROWS, Board


def in_a_fork(work: object) -> None:
    """Run it in a forked process to its end."""
    pid = os.fork()
    if pid == 0:
        work()  # type: ignore[operator]
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def board() -> Board:
    return Board(2)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_one_process_writes_the_others_read(board: Board) -> None:
    part = board.parts[1]

    def write() -> None:
        part.numbers[PLACES] += 7
        part.publish(b"first")
        part.publish(b"second, and longer")

    in_a_fork(write)
    assert part.numbers[PLACES] == 7
    assert part.published() == b"second, and longer"
    part.publish(b"third")
    assert part.published() == b"third"
    assert board.parts[0].published() == b""


def test_a_part_that_is_cleared_holds_nothing(board: Board) -> None:
    part = board.parts[0]
    part.publish(b"counts")
    part.set_row(0, "192.0.2.1", 5, 1)
    part.numbers[ROWS] = 1
    part.set_waiters([("192.0.2.1", BYTES)])
    part.clear()
    assert (part.published(), list(part.rows()), list(part.waiters())) == (b"", [], [])


def test_rows_and_waiters_come_back_as_they_were_set(board: Board) -> None:
    part = board.parts[0]
    part.set_row(0, "2001:db8:1:2::/64", 5, 1)
    part.set_row(1, "", 0, 3)
    part.numbers[ROWS] = 2
    part.set_waiters([("192.0.2.1", PLACES)])
    assert list(part.rows()) == [("2001:db8:1:2::/64", 5, 1), ("", 0, 3)]
    assert list(part.waiters()) == [("192.0.2.1", PLACES)]
    part.set_waiters([("192.0.2.1", PLACES)] * 2 * MAX_WAITERS)
    part.numbers[ROWS] = 10 * MAX_ROWS
    assert len(list(part.waiters())) == MAX_WAITERS
    assert len(list(part.rows())) == MAX_ROWS


def test_content_that_does_not_fit_is_refused_and_the_former_stays(board: Board) -> None:
    board.supervisor.publish(b"counts")
    with pytest.raises(ValueError, match="do not fit"):
        board.supervisor.publish(bytes(CONTENT_BYTES + 1))
    assert board.supervisor.published() == b"counts"


def test_a_reader_of_content_that_is_overwritten_meanwhile_reads_again(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = board.parts[0]
    part.publish(b"first")
    halves, once = part._halves, []

    class Slow(list):
        def __getitem__(self, half: object) -> object:
            if not once:
                once.append(part._halves)
                part._halves = halves
                part.publish(b"second")
                part.publish(b"third")
            return halves[half]  # type: ignore[index]

    part._halves = Slow(halves)
    assert part.published() == b"third"
