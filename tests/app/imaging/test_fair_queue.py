from dataclasses import dataclass

from app.imaging.fair_queue import FairQueue, uses


@dataclass(eq=False)
class Image:
    client: str
    worker: int = 0
    small: bool = False
    wanted: bool = True

    def begin(self) -> bool:
        return self.wanted


def queue_of(*images: Image, general: int = 2) -> FairQueue[Image]:
    queue: FairQueue[Image] = FairQueue(general)
    for image in images:
        queue.put(image)
    return queue


def test_there_is_a_small_and_a_spare_lane_beside_the_general_ones() -> None:
    assert uses(4) == ["small", "spare", "general", "general"]


def test_the_client_that_holds_the_fewest_lanes_is_next() -> None:
    crowd, other = [Image("crowd") for _ in range(3)], Image("other")
    queue = queue_of(*crowd, other)
    assert queue.next("general") is crowd[0]
    assert queue.next("general") is other
    queue.done("general", other)
    late = Image("other")
    queue.put(late)
    assert queue.next("general") is late
    assert queue.next("general") is crowd[1]
    assert not queue.empty


def test_of_a_clients_images_one_of_the_worker_that_holds_the_fewest_is_next() -> None:
    first, second, third = Image("a", 0), Image("a", 0), Image("a", 1)
    queue = queue_of(first, second, third)
    assert [queue.next("general"), queue.next("general")] == [first, third]
    queue.done("general", third)
    assert queue.next("general") is second


def test_an_image_that_returns_comes_first() -> None:
    first, second = Image("a"), Image("a")
    queue = queue_of(second)
    queue.put(first, first=True)
    assert queue.next("general") is first


def test_the_small_lane_takes_small_images_only() -> None:
    large, small = Image("a"), Image("a", small=True)
    queue = queue_of(large)
    assert not queue.has_work("small") and queue.next("small") is None
    queue.put(small)
    assert queue.has_work("small") and queue.next("small") is small


def test_the_spare_lane_is_for_a_client_without_a_lane_when_no_general_one_is_free() -> None:
    crowd, other = [Image("crowd") for _ in range(3)], Image("other")
    queue = queue_of(*crowd)
    queue.next("general")
    assert not queue.has_work("spare") and queue.next("spare") is None  # a general one is free
    queue.next("general")
    assert not queue.has_work("spare") and queue.next("spare") is None  # the crowd holds lanes
    queue.put(other)
    assert queue.has_work("spare") and queue.next("spare") is other


def test_images_that_nobody_wants_any_more_are_skipped() -> None:
    left, wanted = Image("a", wanted=False), Image("a")
    queue = queue_of(left, wanted)
    assert queue.next("general") is wanted
    assert queue.empty and queue.next("general") is None


def test_all_that_wait_can_be_taken() -> None:
    images = [Image("a"), Image("b"), Image("a")]
    queue = queue_of(*images)
    assert set(map(id, queue.clear())) == set(map(id, images))
    assert queue.empty


def test_what_is_discarded_waits_no_more() -> None:
    one, two, other = Image("a"), Image("a"), Image("b")
    queue = queue_of(one, two, other)
    for image in (one, other, other):
        queue.discard(image)
    assert queue.next("general") is two
    assert queue.empty
    queue.discard(two)
