import threading
import time

from app.imaging.pixel_budget import PixelBudget, PixelClaims


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


def test_pixels_are_shared_and_given_back() -> None:
    budget = PixelBudget(10)
    with budget.hold(6, soon()) as first, budget.hold(4, soon()) as second:
        assert first and second
        assert budget.used == 10
        with budget.hold(1, soon(0.01)) as third:
            assert not third
        assert budget.used == 10
    assert budget.used == 0


def test_an_image_larger_than_the_budget_is_decoded_alone() -> None:
    budget = PixelBudget(10)
    with budget.hold(1, soon()), budget.hold(99, soon(0.01)) as held:
        assert not held
    with budget.hold(99, soon()) as held:
        assert held
        assert budget.used == 10


def waiter(budget: PixelBudget, pixels: int) -> tuple[threading.Thread, threading.Event]:
    """A thread that waits for pixels, and what it sets when it has them."""
    came = threading.Event()

    def wait() -> None:
        with budget.hold(pixels, soon()) as held:
            assert held
            came.set()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, came


def test_pixels_that_become_free_go_to_an_image_that_waits() -> None:
    budget = PixelBudget(10)
    with budget.hold(5, soon()):
        thread, came = waiter(budget, 10)
        assert not came.wait(0.02)
    assert came.wait(60)
    thread.join()
    assert budget.used == 0


def test_a_large_claim_is_not_passed_by_smaller_ones() -> None:
    claims = PixelClaims(10)
    held = claims.add(4)
    assert claims.grant() == [held]
    large, small = claims.add(10), claims.add(1)
    assert claims.grant() == []
    claims.drop(held)
    assert claims.grant() == [large]
    claims.drop(large)
    assert claims.grant() == [small]


def test_claims_that_are_first_pass_all_others_in_their_order() -> None:
    claims = PixelClaims(10)
    held = claims.add(10)
    claims.grant()
    other, one, two = claims.add(5), claims.add(5, first=True), claims.add(5, first=True)
    claims.drop(held)
    assert claims.grant() == [one, two]
    claims.drop(one)
    assert claims.grant() == [other]


def test_a_claim_that_is_given_up_lets_the_next_go() -> None:
    claims = PixelClaims(10)
    held = claims.add(6)
    claims.grant()
    large, small = claims.add(10), claims.add(4)
    assert claims.grant() == []
    claims.drop(large)
    assert claims.grant() == [small]
    for claim in (held, small):
        claims.drop(claim)
    assert claims.used == 0


def test_one_that_gives_up_waiting_wakes_the_next() -> None:
    budget = PixelBudget(10)
    with budget.hold(6, soon()):
        with budget.hold(10, soon(0.05)) as refused:
            thread, came = waiter(budget, 4)  # behind the one that is refused
            assert not refused
        assert came.wait(60)
    thread.join()
