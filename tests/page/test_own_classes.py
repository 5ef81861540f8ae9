"""The page's words about a model of a user's own classes. The service is CIFAR-10's, only its documents are others."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Locator, Page, Route, expect

from tests.page.conftest import Visit, shoot
from tests.page.steps import CAT, answers, pick, the_answer

OWN = {"name": "pets", "title": "Pets & Co", "one_kind": True}


def documents(service: httpx.Client, classes: list[str]) -> dict[str, dict[str, Any]]:
    """What a service with these classes would say of its model: no photographs, one level, other things measured."""
    model, report = (service.get(path).json() for path in ("/model", "/metrics/report"))
    level = {**report["conformal"]["levels"][0], "sizes": [9, 1], "class_coverage": [0.95] * len(classes)}
    conformal = {"default_coverage": 0.95, "levels": [{"coverage": 0.95, "threshold": 0.1}]}
    model |= {"classes": classes, "data_set": OWN, "photographs": None}
    model["calibration"]["conformal"] = conformal
    row = report["per_class"][0]
    report["per_class"] = [{**row, "class_id": index, "label": label} for index, label in enumerate(classes)]
    report["confusion_matrix"] = [
        [5 if row == column else 1 for column in range(len(classes))] for row in range(len(classes))
    ]
    report["conformal"]["levels"] = [level]
    report["photographs"] = None
    report["abstention"] |= {"others": 110, "refused": {"value": 0.8182, "ci95": [0.7, 0.9]}}
    answer = service.post("/predict", content=CAT.read_bytes()).json()
    answer |= {"predictions": [{"label": classes[0], "class_id": 0, "probability": 0.9}], "measured_on": "photographs"}
    answer["prediction_set"] = {"coverage": 0.95, "labels": classes[:1]}
    return {"**/model": model, "**/metrics/report": report, "**/predict?*": answer}


def ticks(page: Page) -> Locator:
    """Of the accuracy's interval."""
    return page.get_by_role("img", name="95 % interval").locator("text")


def show(
    visit: Visit,
    service: httpx.Client,
    classes: list[str],
    report: Mapping[str, Any] | None = None,
    refused: tuple[int, ...] = (),
) -> Page:
    page = visit(refused=refused)

    def answer_with(document: dict[str, Any]) -> Any:
        def fulfil(route: Route) -> None:
            route.fulfill(json=document)

        return fulfil

    found = documents(service, classes)
    found["**/metrics/report"] |= report or {}
    for path, document in found.items():
        page.route(path, answer_with(document))
    page.reload()
    return page


def test_pictures_are_of_one_kind(visit: Visit, service: httpx.Client) -> None:
    of_few = {"accuracy": {"value": 0.93, "ci95": [0.862, 0.969]}}
    page = show(visit, service, ["cat", "<b>dog</b>", "a rather long name of a class"], of_few)
    expect(page.get_by_text("It knows 3 classes")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="<b>dog</b>")).to_be_visible()
    page.get_by_text("Settings", exact=True).click()
    expect(page.get_by_label("Classes to list")).to_be_visible()
    expect(page.get_by_label("Treat pictures as")).to_have_count(0)
    pick(page, CAT)
    words = r"95\s% of the time, for pictures of the model’s classes\. Of 10,000 test pictures, .+ had theirs in it\."
    expect(the_answer(page, "answered")).to_contain_text(re.compile(words))

    page.get_by_role("tab", name="The model").click()
    panel = page.get_by_role("tabpanel", name="The model")
    expect(panel.get_by_role("grid")).to_be_visible()
    expect(ticks(page)).to_have_text(["84 %", "86 %", "88 %", "90 %", "92 %", "94 %", "96 %", "98 %"])
    refused = panel.locator(".facts div").filter(has_text="of 110 pictures of other things")
    words = r"81\.8\s% ?of 110 pictures of other things get no answer; none of them should get one"
    expect(refused).to_have_text(re.compile(words))
    expect(
        panel.get_by_text(re.compile(r"It names a class for 18\.2\s% of pictures that show something else"))
    ).to_be_visible()
    expect(panel.get_by_text(re.compile("Thumbnails|Photographs|photographs"))).to_have_count(0)
    shoot(page, "own-classes")


def test_many_classes_are_searched_scrolled_and_not_drawn_as_a_matrix(visit: Visit, service: httpx.Client) -> None:
    hardly_any = {"value": 0.002, "ci95": [0.0008, 0.0051]}
    page = show(visit, service, [f"class {number}" for number in range(301)], {"accuracy": hardly_any})
    expect(page.get_by_text("It knows 301 classes")).to_be_visible()
    page.get_by_role("searchbox", name="Does it know").fill("CLASS 29")
    expect(page.get_by_text("11 classes contain")).to_be_visible()
    page.get_by_role("tab", name="The model").click()
    panel = page.get_by_role("tabpanel", name="The model")
    expect(panel.get_by_text("A matrix of 301 classes is too large to be shown")).to_be_visible()
    expect(panel.get_by_role("grid")).to_have_count(0)
    expect(panel.get_by_text("class 0, taken for class 1: 1", exact=True)).to_be_visible()
    table = panel.get_by_role("region", name="Scores by class")
    box = table.bounding_box()
    assert box is not None and box["height"] < 800
    expect(ticks(page)).to_have_text(["0 %", "1 %", "2 %"])


def test_the_words_fit_a_model_that_refuses_nothing(visit: Visit, service: httpx.Client) -> None:
    measured = service.get("/metrics/report").json()["abstention"]
    weak = {"abstention": measured | {"others": 6, "refused": {"value": 0.0, "ci95": [0.0, 0.39]}}}
    page = show(visit, service, ["cat", "dog"], weak)
    page.get_by_role("tab", name="The model").click()
    panel = page.get_by_role("tabpanel", name="The model")
    expect(
        panel.get_by_text("of 6 pictures of other things get no answer; none of them should get one")
    ).to_be_visible()
    expect(panel.get_by_text("as it should be")).to_have_count(0)


def test_classes_with_the_names_of_the_page_s_own_groups(visit: Visit, service: httpx.Client, tmp_path: Path) -> None:
    page = show(visit, service, ["All", "Failed", "cat"], refused=(422,))
    answer = documents(service, ["All", "Failed", "cat"])["**/predict?*"]
    page.unroute("**/predict?*")
    unusable = {"code": "undecodable_image", "detail": "no image", "instance": "7"}

    def classify(route: Route) -> None:
        sent = (route.request.post_data_buffer or b"").decode()
        if sent == "broken":
            route.fulfill(status=422, content_type="application/problem+json", json=unusable)
            return
        best = {"label": sent, "class_id": 0, "probability": 0.9}
        route.fulfill(
            json=answer
            | {"predictions": [best], "prediction_set": {"coverage": 0.95, "labels": [sent]}, "abstain": False}
        )

    page.route("**/predict?*", classify)
    files = []
    for number, content in enumerate(("All", "Failed", "Failed", "cat", "broken")):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_text(content)
    pick(page, *files)
    filters = page.get_by_role("group", name="Show").get_by_role("button")
    expect(filters).to_have_text(["All 5", "Failed 1", "class Failed 2", "class All 1", "cat 1"])
    expect(answers(page)).to_have_count(5)
    for name, shown in (
        ("class All 1", ["0.png"]),
        ("Failed 1", ["4.png"]),
        ("class Failed 2", ["1.png", "2.png"]),
        ("All 5", [f"{number}.png" for number in range(5)]),
    ):
        page.get_by_role("button", name=name, exact=True).click()
        expect(page.locator("#answers > :not([hidden]) .file-name")).to_have_text(shown)
        expect(filters.and_(page.locator("[aria-pressed=true]"))).to_have_text(name)
