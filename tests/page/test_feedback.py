"""What a picture really shows, told to the service where it takes feedback."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.page.conftest import Visit, served, shoot
from tests.page.steps import sample, the_answer
from tests.page.test_access import PHONE, assert_accessible


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service that takes feedback and keeps no copies."""
    folder: Path = tmp_path_factory.mktemp("feedback")
    with served(FEEDBACK_DIR=folder, FEEDBACK_SAMPLE=0) as client:
        yield client


def counted(client: httpx.Client) -> dict[str, float]:
    """By whether the answer was right."""
    found = re.findall(r'feedback_total\{.*correct="(\w+)"\} (\d+)', client.get("/metrics").text)
    totals = dict.fromkeys(("true", "false"), 0.0)
    for correct, number in found:
        totals[correct] += float(number)
    return totals


def test_an_answer_is_called_right_or_gets_its_class(visit: Visit, asking: httpx.Client) -> None:
    page = visit(at=asking)
    sample(page, "cat")
    card = the_answer(page, "answered")
    shoot(page, "feedback")
    card.get_by_role("button", name="Right").click()
    noted = card.get_by_text("Noted: cat. Thank you.")
    expect(noted).to_be_focused()
    expect(page.get_by_role("status").first).to_have_text("Noted: cat. Thank you.")
    assert counted(asking) == {"true": 1, "false": 0}

    page.get_by_role("button", name="Clear all").click()
    sample(page, "dog")
    card = the_answer(page, "answered")
    card.get_by_role("button", name="It is …").click()
    choice = card.get_by_label("It is", exact=True)
    expect(choice).to_be_focused()
    expect(choice.locator("option")).to_have_count(10)  # an empty one, and all classes but the answer
    card.get_by_role("button", name="Send").click()  # nothing is chosen: the browser asks for it
    choice.select_option("cat")
    card.get_by_role("button", name="Send").click()
    expect(card.get_by_text("Noted: cat. Thank you.")).to_be_visible()
    assert counted(asking) == {"true": 1, "false": 1}


def test_a_label_is_told_as_it_is(visit: Visit, asking: httpx.Client) -> None:
    """HTML would take two spaces for one."""
    model = asking.get("/model").json()
    model["classes"][0] = "two  spaces"
    page = visit(at=asking)
    page.route("**/model", lambda route: route.fulfill(json=model))
    page.route("**/feedback", lambda route: route.fulfill(json={}))
    page.reload()
    sample(page, "cat")
    card = the_answer(page, "answered")
    card.get_by_role("button", name="It is …").click()
    card.get_by_label("It is", exact=True).select_option(index=1)
    with page.expect_request("**/feedback") as told:
        card.get_by_role("button", name="Send").click()
    assert told.value.post_data_json["label"] == "two  spaces"


def test_the_class_of_an_unknown_picture_is_asked_for_on_a_phone(visit: Visit, asking: httpx.Client) -> None:
    page = visit(at=asking, refused=(404,), **PHONE)
    with page.expect_response("**/predict?*") as predicted:
        sample(page, "a chessboard")
    card = the_answer(page, "abstained")
    expect(card.get_by_role("button", name="Right")).to_have_count(0)
    assert_accessible(page)
    shoot(page, "feedback-phone")
    told = {"request_id": predicted.value.headers["x-request-id"], "label": "dog"}
    assert asking.post("/feedback", json=told).is_success
    card.get_by_label("It is", exact=True).select_option("bird")
    card.get_by_role("button", name="Send").click()
    expect(card).to_contain_text("The service does not remember this answer any more.")
