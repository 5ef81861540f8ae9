"""What goes wrong, in words for people, and what helps."""

import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Route, expect

from app.errors import BY_CODE
from tests.conftest import DATA, ROOT
from tests.page.conftest import Visit, served, shoot
from tests.page.steps import CAT, answers, pick, sample, show_code, the_answer


@pytest.fixture
def small() -> Iterator[httpx.Client]:
    """A service that takes little."""
    with served(MAX_FILE_BYTES=100_000, MAX_REQUEST_BYTES=1_000_000, MAX_PIXELS=50_000) as client:
        yield client


def refuse(code: str, **headers: str) -> dict[str, object]:
    """The service's answer, for page.route."""
    kind = BY_CODE[code]
    document = {"code": code, "title": kind.title, "detail": "as it happens", "instance": "1234"}
    return {  # with `json`, Playwright would name another type
        "status": kind.status,
        "headers": {"Content-Type": "application/problem+json", **headers},
        "body": json.dumps(document),
    }


def test_not_an_image(visit: Visit, service: httpx.Client) -> None:
    page = visit(refused=(415,))
    pick(page, ROOT / "README.md")
    card = the_answer(page, "failed")
    expect(card.get_by_role("heading")).to_have_text("This is not an image that the service can read")
    expect(card).to_contain_text("The service reads JPEG, PNG, WebP, GIF, BMP and AVIF.")
    detail = service.post("/predict", content=(ROOT / "README.md").read_bytes()).json()["detail"]
    expect(card).to_contain_text(f"Details: {detail}")
    expect(card.get_by_role("button", name="Try again")).to_have_count(0)
    expect(page.get_by_role("status").first).to_contain_text("README.md: This is not an image")
    shoot(page, "not-an-image")


@pytest.mark.parametrize(
    ("content", "title"),
    [(CAT.read_bytes()[:400], "This image is damaged"), (b"", "This file is empty")],
    ids=["cut", "empty"],
)
def test_damaged(visit: Visit, tmp_path: Path, content: bytes, title: str) -> None:
    page = visit(refused=(422,))
    file = tmp_path / "cat.png"
    file.write_bytes(content)
    pick(page, file)
    expect(the_answer(page, "failed").get_by_role("heading")).to_have_text(title)


def test_one_bad_image_does_not_keep_the_others(visit: Visit) -> None:
    page = visit(refused=(415,))
    pick(page, CAT, ROOT / "README.md", DATA / "ship.png")
    expect(page.locator(".answer[data-state=answered]")).to_have_count(2)
    expect(page.locator(".answer[data-state=failed]")).to_have_count(1)


def test_too_large(visit: Visit, small: httpx.Client, photo: Path) -> None:
    page = visit(at=small, refused=(413,))
    assert photo.stat().st_size > 100_000
    pick(page, photo)
    card = the_answer(page, "failed")
    expect(card.get_by_role("heading")).to_have_text("This file is too large")
    expect(card.get_by_role("button", name="Make it smaller here")).to_be_visible()
    expect(card).to_contain_text(f"This file has {round(photo.stat().st_size / 1000)} kB")
    shoot(page, "too-large")


def test_too_many_pixels_and_made_smaller(visit: Visit, tmp_path: Path) -> None:
    from PIL import Image

    with served(MAX_PIXELS=2_000_000) as client:
        page = visit(at=client, refused=(413,))
        file = tmp_path / "wide.png"
        with Image.open(CAT) as cat:
            cat.resize((2000, 1500)).save(file)
        pick(page, file)
        card = the_answer(page, "failed")
        expect(card.get_by_role("heading")).to_have_text("This image has too many pixels")
        card.get_by_role("button", name="Make it smaller here").click()
        card = the_answer(page, "answered")
        expect(card).to_contain_text("wide-smaller.jpg")
        expect(card.get_by_role("heading")).to_have_text(re.compile("^cat "))


def test_an_image_so_large_that_the_service_hangs_up(visit: Visit, small: httpx.Client, tmp_path: Path) -> None:
    """Browsers may not get to see the answer to a body that they were not let finish: size is named either way."""
    page = visit(at=small, refused=(413,))
    file = tmp_path / "huge.png"
    file.write_bytes(CAT.read_bytes() + bytes(20_000_000))
    pick(page, file)
    card = the_answer(page, "failed")
    expect(card).to_contain_text("too large")
    expect(card).to_contain_text("20.0 MB")
    expect(card.get_by_role("button", name="Make it smaller here")).to_be_visible()


def test_a_busy_service_is_asked_again_when_it_says(visit: Visit) -> None:
    page = visit(refused=(429,))
    page.clock.install(time=0)
    page.clock.pause_at(3600)  # installed alone, it also runs with the real time
    asked = []

    def busy_twice(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) < 3:
            route.fulfill(**refuse("overloaded", **{"Retry-After": "7"}))
        else:
            route.continue_()

    page.route("**/predict?*", busy_twice)
    sample(page, "cat")
    for attempt in (1, 2):
        expect(answers(page).get_by_role("heading")).to_have_text("The service is busy. Trying again in 7 s…")
        expect(page.get_by_role("status").first).to_contain_text("Trying again in 7 s")
        page.clock.run_for(6_900)
        assert len(asked) == attempt
        with page.expect_request("**/predict?*"):
            page.clock.run_for(100)
    the_answer(page, "answered")
    assert len(asked) == 3


def test_a_service_that_stays_busy(visit: Visit) -> None:
    page = visit(refused=(429,))
    page.route("**/predict?*", lambda route: route.fulfill(**refuse("overloaded", **{"Retry-After": "0"})))
    sample(page, "cat")
    card = the_answer(page, "failed")
    expect(card.get_by_role("heading")).to_have_text("The service is busy")
    page.unroute("**/predict?*")
    card.get_by_role("button", name="Try again").click()
    the_answer(page, "answered")


@pytest.mark.parametrize(
    ("code", "title"),
    [
        ("unavailable", "The service is restarting"),
        ("deadline_exceeded", "That took too long"),
        ("request_timeout", "That took too long"),
        ("internal", "Something went wrong in the service"),
    ],
)
def test_the_service_s_own_troubles(visit: Visit, code: str, title: str) -> None:
    page = visit(refused=(BY_CODE[code].status,))
    page.route("**/predict?*", lambda route: route.fulfill(**refuse(code)))
    sample(page, "cat")
    card = the_answer(page, "failed")
    expect(card.get_by_role("heading")).to_have_text(title)
    expect(card).to_contain_text("request 1234")
    page.unroute("**/predict?*")
    card.get_by_role("button", name="Try again").click()
    the_answer(page, "answered")


def test_a_service_that_is_not_there(visit: Visit) -> None:
    page = visit()
    page.route("**/predict?*", lambda route: route.abort())
    sample(page, "cat")
    card = the_answer(page, "failed")
    expect(card.get_by_role("heading")).to_have_text("The service cannot be reached")
    expect(card).not_to_contain_text("Details: The service")
    page.unroute("**/predict?*")
    card.get_by_role("button", name="Try again").click()
    the_answer(page, "answered")
    page.route("**/samples/*", lambda route: route.abort())
    sample(page, "dog")
    expect(page.get_by_role("alert")).to_contain_text("The sample could not be loaded")


def proxy_page(status: int, **headers: str) -> dict[str, object]:
    """A proxy's own answer, for page.route; test_proxy.py has those of a real nginx."""
    title = f"{status} {HTTPStatus(status).phrase}"
    body = f"<html><head><title>{title}</title></head><body><center><h1>{title}</h1></center>nginx</body></html>"
    return {"status": status, "headers": {"Content-Type": "text/html", **headers}, "body": body}


@pytest.mark.parametrize(
    ("status", "title", "advice"),
    [
        (403, "The proxy in front of the service refuses access", "a login or a key"),
        (500, "A proxy answered instead of the service", "Your picture is not the cause"),
        (200, "A proxy answered instead of the service", "wants a login"),
    ],
)
def test_the_page_of_another_proxy_is_explained(visit: Visit, status: int, title: str, advice: str) -> None:
    page = visit(refused=(status,))
    page.route("**/predict?*", lambda route: route.fulfill(**proxy_page(status)))
    sample(page, "cat")
    card = the_answer(page, "failed")
    expect(card.get_by_role("heading")).to_have_text(title)
    expect(card).to_contain_text(advice)
    expect(card).to_contain_text(f"Details: HTTP status {status}, not from the service")
    expect(card).not_to_contain_text("cannot be reached")
    page.unroute("**/predict?*")
    card.get_by_role("button", name="Try again").click()
    the_answer(page, "answered")


@pytest.mark.parametrize("answer", [refuse("unauthorized"), proxy_page(401, **{"WWW-Authenticate": "Bearer"})])
def test_the_time_of_typing_a_key_is_not_that_of_the_answer(visit: Visit, answer: dict[str, object]) -> None:
    page = visit(refused=(401,))
    page.clock.install(time=0)
    page.clock.pause_at(3600)

    def want_a_key(route: Route) -> None:
        if "authorization" in route.request.headers:
            route.continue_()
        else:
            route.fulfill(**answer)

    page.route("**/predict?*", want_a_key)
    sample(page, "cat")
    field = page.get_by_label("This service needs an API key")
    expect(field).to_be_focused()
    page.clock.run_for(60_000)
    field.fill("sesame")
    field.press("Enter")
    expect(the_answer(page, "answered")).to_contain_text("0.0\u00a0ms with the network")


def test_a_map_that_cannot_be_had(visit: Visit) -> None:
    page = visit(refused=(503,))
    page.route("**/explain?*", lambda route: route.fulfill(**refuse("unavailable")))
    sample(page, "cat")
    card = the_answer(page, "answered")
    card.get_by_role("button", name="Where it looks").click()
    expect(card).to_contain_text("The service is restarting")
    expect(card.get_by_role("img", name="Your image")).to_be_visible()


def test_neither_a_key_nor_feedback_is_asked_for_where_none_is_wanted(visit: Visit) -> None:
    page = visit()
    sample(page, "cat")
    expect(the_answer(page, "answered").get_by_text("Is that right?")).to_have_count(0)
    expect(page.get_by_label("API key")).to_be_hidden()
    expect(page.get_by_role("contentinfo").get_by_role("link")).to_have_text(["API documentation", "Report as JSON"])


def test_a_service_that_wants_a_key(visit: Visit) -> None:
    with served(API_KEYS="sesame") as client:
        page = visit(at=client, refused=(401,))
        field = page.get_by_label("This service needs an API key")
        expect(field).to_be_focused()
        expect(page.get_by_role("link")).to_have_count(0)  # a browser sends no key when it follows one
        field.fill("simsim")
        sample(page, "cat")
        expect(field).to_be_focused()  # once more, for this request needs a key as well
        expect(field).to_have_value("simsim")
        field.press("Enter")
        rejected = page.get_by_label("The service does not know this key. Try another.")
        expect(rejected).to_be_focused()
        rejected.fill("\u201csesame\u201d")
        rejected.press("Enter")
        page.get_by_label("This cannot be a key").fill("simsim")
        page.get_by_label("This cannot be a key").press("Enter")
        expect(rejected).to_be_focused()
        expect(rejected).to_have_value("")
        shoot(page, "key")
        rejected.fill("sesame")
        page.get_by_role("button", name="Use this key").click()
        card = the_answer(page, "answered")
        expect(page.get_by_role("contentinfo")).to_contain_text("mobilenet_v2_cifar10")
        expect(page.get_by_role("link")).to_have_count(0)
        show_code(card, "curl")
        expect(card.get_by_role("code")).to_contain_text('-H "Authorization: Bearer $API_KEY"')
        expect(page.locator("body")).not_to_contain_text("sesame")
        page.get_by_role("tab", name="The model").click()
        expect(page.get_by_role("grid")).to_be_visible()
        expect(page.get_by_role("img", name=re.compile("^Reliability"))).to_be_visible()
