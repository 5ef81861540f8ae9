import gc

from app.process.lone_connection import ALONE_AFTER_SECONDS, LoneConnection


class Connection:
    """Something to which there can be weak references."""


def test_a_connection_is_alone_when_no_other_sent_a_request_for_some_time() -> None:
    times = iter([0.0, 0.5 * ALONE_AFTER_SECONDS, ALONE_AFTER_SECONDS, 9.0])
    lone, one = LoneConnection(lambda: next(times)), Connection()
    assert [lone.alone(one) for _ in range(4)] == [False, False, True, True]


def test_connections_that_take_turns_are_not_alone() -> None:
    times = iter(range(100))
    lone, one, other = LoneConnection(lambda: next(times)), Connection(), Connection()
    for _ in range(10):
        assert not lone.alone(one)
        assert not lone.alone(other)
    assert lone.alone(other)
    assert not lone.alone(one)


def test_a_connection_that_is_gone_is_not_taken_for_a_new_one() -> None:
    times = iter(range(100))
    lone, one = LoneConnection(lambda: next(times)), Connection()
    lone.alone(one)
    del one
    gc.collect()
    assert not lone.alone(Connection())
