"""The model's tab says what the report says."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.conftest import ROOT
from tests.page.conftest import Visit, shoot, visiting
from tests.page.steps import open_model


@pytest.fixture
def report(service: httpx.Client) -> dict[str, Any]:
    return service.get("/metrics/report").json()


@pytest.fixture(scope="module")
def panel(browser: Browser, service: httpx.Client) -> Iterator[Locator]:
    """The tab, for tests that only look at it."""
    with visiting(browser, service) as visit:
        yield open_model(visit())


def column(panel: Locator, number: int) -> list[str]:
    cells = panel.get_by_role("region", name="Scores by class").locator(f"tbody tr > :nth-child({number})")
    return cells.all_inner_texts()


def test_accuracy_with_its_interval(panel: Locator, report: dict[str, Any]) -> None:
    accuracy = report["accuracy"]
    low, high = (f"{bound * 100:.2f}" for bound in accuracy["ci95"])
    words = rf"Accuracy {accuracy['value'] * 100:.2f}\s%, 95 % interval {low}\s% to {high}\s%"
    expect(panel.get_by_role("img", name=re.compile(words))).to_be_visible()
    expect(panel.get_by_text(re.compile(rf"^{accuracy['value'] * 100:.2f}\s%$")).first).to_be_visible()
    shoot(panel.page, "model")


def test_the_report_is_asked_for_once_and_only_when_it_is_wanted(visit: Visit) -> None:
    page = visit()
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/report") else None)
    page.get_by_role("tab", name="The model").hover()
    assert asked == []
    open_model(page)
    page.get_by_role("tab", name="Classify").click()
    open_model(page)
    assert len(asked) == 1


def test_the_table_is_sorted_by_its_heads(visit: Visit, report: dict[str, Any]) -> None:
    page = visit()
    panel = open_model(page)
    labels = [row["label"] for row in report["per_class"]]
    expect(panel.get_by_role("columnheader", name="Class", exact=True)).to_have_attribute("aria-sort", "ascending")
    assert column(panel, 1) == sorted(labels)

    panel.get_by_role("button", name="Recall").click()
    recall = panel.get_by_role("columnheader", name="Recall")
    expect(recall).to_have_attribute("aria-sort", "descending")
    expect(panel.locator("[aria-sort]")).to_have_count(1)
    by_recall = sorted(report["per_class"], key=lambda row: -row["recall"])
    assert column(panel, 3) == [f"{row['recall'] * 100:.1f}\u00a0%" for row in by_recall]
    assert column(panel, 1)[0] == by_recall[0]["label"]
    expect(page.get_by_role("status").first).to_have_text("Sorted by Recall, descending.")

    panel.get_by_role("button", name="Recall").press("Enter")
    expect(recall).to_have_attribute("aria-sort", "ascending")
    assert column(panel, 1)[0] == by_recall[-1]["label"]


def test_the_confusion_matrix_holds_the_report_s_counts(panel: Locator, report: dict[str, Any]) -> None:
    cells = panel.get_by_role("gridcell").evaluate_all("all => all.map(cell => cell.ariaLabel)")
    counts = [int(label.rpartition(": ")[2].replace(",", "")) for label in cells]
    assert counts == [count for row in report["confusion_matrix"] for count in row]


def test_hovering_tells_the_count_and_a_click_what_it_means(visit: Visit, report: dict[str, Any]) -> None:
    page = visit()
    panel = open_model(page)
    labels = [row["label"] for row in report["per_class"]]
    cat, dog = labels.index("cat"), labels.index("dog")
    matrix = report["confusion_matrix"]
    cell = panel.get_by_role("gridcell", name="cat, taken for dog")
    cell.hover()
    expect(panel.locator(".readout")).to_have_text(f"cat, taken for dog: {matrix[cat][dog]}")
    cell.click()
    expect(cell).to_have_attribute("aria-selected", "true")
    meaning = panel.locator(".meaning")
    expect(meaning).to_contain_text(f"{matrix[cat][dog]} ({matrix[cat][dog] / sum(matrix[cat]) * 100:.1f}")
    expect(meaning).to_contain_text(f"Conversely, it took {matrix[dog][cat]} of 1,000 images of class dog for cat")

    panel.get_by_role("gridcell", name="cat, recognised").click()
    recall, precision = (report["per_class"][cat][key] * 100 for key in ("recall", "precision"))
    expect(meaning).to_contain_text(re.compile(rf"recall {recall:.1f}\s%.*precision {precision:.1f}\s%"))
    expect(panel.locator(".cell[aria-selected=true]")).to_have_count(1)
    page.mouse.move(0, 0)
    expect(panel.locator(".readout")).to_contain_text("cat, recognised")
    worst = max(matrix[row][column] for row in range(10) for column in range(10) if row != column)
    mistake = panel.get_by_role("button", name=re.compile("taken for")).first
    expect(mistake).to_contain_text(str(worst))
    mistake.click()
    expect(panel.locator(".cell[aria-selected=true]")).to_have_attribute("aria-label", mistake.inner_text())
    expect(meaning).to_contain_text(f"The model took {worst} ")


def test_what_it_is_bad_at_is_said(panel: Locator, report: dict[str, Any]) -> None:
    said = panel.locator(".sentences")
    worst = min(report["per_class"], key=lambda row: row["recall"])
    expect(said).to_contain_text(f"Of test images, it finds {worst['label']} least often ({worst['recall'] * 100:.1f}")
    photographs = [row for row in report["photographs"]["per_class"] if row["support"] >= 30]
    worst = min(photographs, key=lambda row: row["recall"]["value"])
    expect(said).to_contain_text(f"Of photographs, it finds {worst['label']} least often")
    expect(said).to_contain_text("How well it finds deer or horse in photographs is not known")
    expect(said).to_contain_text("Worst are gaussian noise")
    expect(said).to_contain_text("it confuses cat with dog")


def test_arrows_move_through_the_confusion_matrix(visit: Visit) -> None:
    page = visit()
    panel = open_model(page)
    cells = panel.get_by_role("gridcell")
    expect(panel.locator(".cell[tabindex='0']")).to_have_count(1)
    cells.first.focus()
    for key, name in (
        ("ArrowRight", "airplane, taken for automobile"),
        ("ArrowDown", "automobile, recognised"),
        ("ArrowLeft", "automobile, taken for airplane"),
        ("ArrowLeft", "automobile, taken for airplane"),
        ("End", "automobile, taken for truck"),
        ("Home", "automobile, taken for airplane"),
        ("Control+End", "truck, recognised"),
        ("ArrowUp", "ship, taken for truck"),
    ):
        page.keyboard.press(key)
        expect(panel.get_by_role("gridcell", name=name)).to_be_focused()
    expect(panel.locator(".readout")).to_contain_text("ship, taken for truck")
    page.keyboard.press("Enter")
    expect(panel.locator(".meaning")).to_contain_text("of class ship")
    expect(panel.locator(".cell[tabindex='0']")).to_have_count(1)


def test_training_curves(panel: Locator, report: dict[str, Any]) -> None:
    for quantity, name in (("accuracy", "Accuracy by epoch"), ("loss", "Loss (nats) by epoch")):
        chart = panel.get_by_role("img", name=name)
        expect(chart.locator("circle")).to_have_count(2 * len(report["history"]))
        value = report["history"][-1][f"validation_{quantity}"]
        shown = f"{value * 100:.2f}" if quantity == "accuracy" else f"{value:.2f}"
        expect(chart).to_have_attribute("aria-label", re.compile(f"at the end {re.escape(shown)}"))
    panel.get_by_text("The same as a table").click()
    rows = panel.get_by_role("region", name="Training by epoch").locator("tbody tr")
    expect(rows).to_have_count(len(report["history"]))


@pytest.mark.parametrize("bundle", ["mobilenet_v2_cifar10", "mobilenet_v2_cifar10_small"])
def test_the_passes_over_the_images_are_those_of_the_card(visit: Visit, bundle: str) -> None:
    """Its history has a row more for each time that the images which fill no batch would have filled one."""
    folder = ROOT / "models" / bundle
    model, report = (json.loads((folder / f"{name}.json").read_text()) for name in ("bundle", "report"))
    passes = model["provenance"]["config"]["epochs"]
    assert f"\n{passes} epochs in" in (folder / "README.md").read_text()
    page = visit()
    page.route("**/model", lambda route: route.fulfill(json=model))
    page.route("**/metrics/report", lambda route: route.fulfill(json=report))
    page.reload()
    panel = open_model(page)
    expect(panel.get_by_text(f"{passes} passes over the training images. The curves have")).to_contain_text(
        f"The curves have {len(report['history'])} points: one after each epoch of whole batches, and one at the end."
    )


def test_where_each_row_is_a_pass_nothing_more_is_said(visit: Visit, report: dict[str, Any]) -> None:
    report["history"] = report["history"][:91]
    page = visit()
    page.route("**/metrics/report", lambda route: route.fulfill(json=report))
    page.reload()
    panel = open_model(page)
    expect(panel.get_by_text("91 passes over the training images. The images were changed at random")).to_be_visible()


def test_risk_and_coverage_follow_the_slider(panel: Locator, report: dict[str, Any]) -> None:
    curve = {round(point["coverage"], 2): point["accuracy"] for point in report["selective"]["curve"]}
    slider = panel.get_by_role("slider", name="Images answered")
    said = panel.locator("output")
    expect(said).to_have_text(re.compile(rf"the surest 90\s%: {curve[0.9] * 100:.2f}\s% right"))
    place = panel.locator(".mark").get_attribute("x1")
    slider.press("ArrowLeft")
    expect(said).to_have_text(re.compile(rf"the surest 89\s%: {curve[0.89] * 100:.2f}\s% right"))
    expect(slider).to_have_attribute("aria-valuetext", said.inner_text())
    assert float(panel.locator(".mark").get_attribute("x1")) < float(place)


def test_prediction_sets(panel: Locator, report: dict[str, Any]) -> None:
    rows = panel.get_by_role("region", name="Prediction sets by level").locator("tbody tr")
    levels = report["conformal"]["levels"]
    expect(rows).to_have_count(len(levels))
    for row, level in zip(rows.all(), levels, strict=True):
        expect(row).to_contain_text(f"{level['served_coverage'] * 100:.2f}")


BINS = [
    {"images": 3, "confidence": 0.35, "accuracy": 0.3},
    {"images": 40, "confidence": 0.7, "accuracy": 0.72},
    {"images": 957, "confidence": 0.99, "accuracy": 0.988},
]


def test_reliability_is_drawn_from_its_bins(visit: Visit, report: dict[str, Any]) -> None:
    for part in ("before", "after"):
        report["calibration"][part]["bins"] = BINS
    page = visit()
    page.route("**/metrics/report", lambda route: route.fulfill(json=report))
    chart = open_model(page).get_by_role("img", name="Reliability: answers given with 35")
    expect(chart.locator("circle")).to_have_count(2 * len(BINS))
    expect(chart.locator(".faint circle")).to_have_count(2)  # of three images, in both curves
    expect(chart).to_have_attribute("aria-label", re.compile(r"right 99\s% of the time \(957 images\)"))
    expect(page.locator(".column")).to_have_text(["957", "40", "3"])


def expect_picture(image: Locator) -> None:
    """Wait for it. `wait_for_function` would evaluate a text, which the page's policy forbids."""
    expect(image).to_have_attribute("src", re.compile("^blob:"))
    image.evaluate("image => image.decode()")
    assert image.evaluate("image => image.naturalWidth") > 100


def test_reports_of_older_bundles_have_other_pictures(visit: Visit, report: dict[str, Any]) -> None:
    for part in ("before", "after"):
        report["calibration"][part].pop("bins", None)
    page = visit(refused=(404,))
    page.route("**/metrics/report", lambda route: route.fulfill(json=report))
    page.route("**/metrics/report/mistakes.png", lambda route: route.fulfill(status=404))
    page.get_by_role("tab", name="The model").click()
    expect(page.get_by_role("img", name="Reliability diagram.")).to_be_visible()
    expect_picture(page.locator(".report-picture").first)
    expect(page.get_by_text("Mistakes that it was sure of")).to_have_count(0)


def test_mistakes_damage_and_layers_are_shown(panel: Locator, service: httpx.Client, report: dict[str, Any]) -> None:
    expect(panel.get_by_role("img", name="Test images with their class")).to_be_visible()
    expect_picture(panel.page.locator(".report-picture").first)

    means = {one["name"]: sum(one["accuracy"]) / 5 for one in report["robustness"]["corruptions"]}
    kinds = sorted(means, key=lambda name: means[name])
    shown = [f"{name.replace('_', ' ')}{means[name] * 100:.1f}\u00a0%" for name in kinds]
    expect(panel.locator(".damage li")).to_have_text(shown)
    panel.get_by_text("Each strength, as a table").click()
    row = panel.get_by_role("region", name="Accuracy by damage").get_by_role("row", name=kinds[0].replace("_", " "))
    worst = next(one for one in report["robustness"]["corruptions"] if one["name"] == kinds[0])
    expect(row).to_contain_text(f"{worst['accuracy'][4] * 100:.1f}")

    layers = panel.locator(".layers li")
    expect(layers.first).to_have_text("Picture32 × 32 or 64 × 64")
    expect(layers).to_contain_text(["128 × 128", "64 × 64 × 32", "4 × 4 × 1,280", "10"])
    expect(panel.get_by_text(f"{service.get('/model').json()['parameters']:,} parameters")).to_be_visible()


def test_a_report_of_accuracy_alone(visit: Visit, report: dict[str, Any]) -> None:
    """What older bundles have no measure of is left out."""
    for key in ("calibration", "conformal", "selective", "abstention", "robustness", "photographs"):
        report[key] = None
    page = visit("/#model")
    page.route("**/metrics/report", lambda route: route.fulfill(json=report))
    page.reload()
    expect(page.get_by_role("grid")).to_be_visible()
    expect(page.get_by_role("heading", level=3)).to_have_text(
        [
            *("Accuracy", "What it is bad at", "Class by class", "Confusion matrix"),
            *("Mistakes that it was sure of", "How it was trained", "How it is built"),
        ]
    )


def test_a_report_that_cannot_be_had(visit: Visit) -> None:
    page = visit()
    page.route("**/metrics/report", lambda route: route.abort())
    page.get_by_role("tab", name="The model").click()
    expect(page.get_by_role("heading", name="The service cannot be reached")).to_be_visible()
    page.unroute("**/metrics/report")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("grid")).to_be_visible()


def test_charts_are_drawn_anew_for_another_width(visit: Visit) -> None:
    page = visit()
    panel = open_model(page)
    chart = page.locator(".pair svg").first
    before = chart.evaluate("chart => chart.clientWidth")
    panel.get_by_role("gridcell", name="cat, taken for dog").click()
    page.set_viewport_size({"width": 360, "height": 740})
    expect(chart).not_to_have_js_property("clientWidth", before)
    assert chart.evaluate("chart => chart.clientWidth") < before
    expect(panel.locator(".cell[aria-selected=true]")).to_have_attribute("aria-label", re.compile("cat, taken for dog"))
    sizes = page.locator(".cell.right").evaluate_all(
        "cells => cells.map((cell) => [...cell.querySelectorAll('text, .ground')].map((each) => each.getBBox().width))"
    )
    assert [each for each in sizes if len(each) != 2 or each[1] > each[0]] == []  # the number fits into its cell
