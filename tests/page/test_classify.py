"""From an image to its answer, whichever way the image comes."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from playwright.sync_api import Page, Route, expect

from tests.conftest import DATA, ROOT
from tests.page.conftest import Visit, shoot
from tests.page.steps import CAT, answers, pick, sample, show_code, the_answer


def test_the_classes_are_named_before_any_picture_is_sent(visit: Visit, service: httpx.Client) -> None:
    model = service.get("/model").json()
    page = visit()
    known = page.get_by_role("list", name="It knows 10 classes")
    expect(known.get_by_role("listitem")).to_have_text(model["classes"])

    many = [f"{adjective} {label}" for adjective in ("small", "large", "old", "new") for label in model["classes"]]
    page.route("**/model", lambda route: route.fulfill(json={**model, "classes": many}))
    page.reload()
    known = page.get_by_role("list", name="It knows 40 classes")
    expect(known.get_by_role("listitem")).to_have_count(30)
    page.get_by_role("searchbox", name="Does it know").fill("Cat")
    expect(known.get_by_role("listitem")).to_have_text(["small cat", "large cat", "old cat", "new cat"])
    expect(page.get_by_text("4 classes contain “cat”.")).to_be_visible()


def answering(answer: dict[str, Any]) -> Callable[[Route], None]:
    """For page.route."""
    return lambda route: route.fulfill(json=answer)


def assert_is_the_cat(page: Page, service: httpx.Client) -> None:
    """The card says what the API says."""
    card = the_answer(page, "answered")
    told = service.post("/predict", content=CAT.read_bytes()).json()["predictions"][0]
    heading = card.get_by_role("heading").inner_text()
    assert heading.split()[0] == told["label"]
    assert abs(float(heading.split()[1]) / 100 - told["probability"]) < 0.001


def test_a_picked_image(visit: Visit, service: httpx.Client) -> None:
    page = visit()
    pick(page, CAT)
    assert_is_the_cat(page, service)
    card = answers(page)
    expect(card).to_contain_text("cat.png")
    expect(card).to_contain_text("Only cat is plausible.")
    total = r"[\d.]+\sms with the network, [\d.]+\sms in the service"
    parts = r"decoding [\d.]+\sms, waiting .+, inference [\d.]+\sms"
    expect(card).to_contain_text(re.compile(f"{total}: {parts}"))
    expect(page.get_by_role("status").first).to_have_text(re.compile(r"cat\.png: cat, 99\.\d\s%\."))
    expect(page.get_by_text("Images are not stored")).to_be_visible()
    shoot(page, "answer")


def test_a_dropped_image(visit: Visit, service: httpx.Client) -> None:
    page = visit()
    devtools = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(CAT)], "dragOperationsMask": 1}
    place = {"x": 300, "y": 500, "data": data}
    devtools.send("Input.dispatchDragEvent", {"type": "dragEnter", **place})
    devtools.send("Input.dispatchDragEvent", {"type": "dragOver", **place})
    expect(page.locator("body")).to_have_class("dragging")
    devtools.send("Input.dispatchDragEvent", {"type": "drop", **place})
    assert_is_the_cat(page, service)
    expect(page.locator("body")).not_to_have_class("dragging")


def test_a_pasted_image(visit: Visit, service: httpx.Client) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async () => {
            const image = await (await fetch("assets/web/samples/cat.png")).blob();
            await navigator.clipboard.write([new ClipboardItem({"image/png": image})]);
        }"""
    )
    page.keyboard.press("Control+V")
    assert_is_the_cat(page, service)


def test_what_is_no_image_at_all_is_told(visit: Visit) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText('a cat')")
    page.keyboard.press("Control+V")
    expect(page.get_by_role("alert")).to_contain_text("The clipboard holds no image")
    page.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            dataTransfer.setData("text/uri-list", "https://example.org/cat.png");
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
        }"""
    )
    expect(page.get_by_role("alert")).to_contain_text("The dropped item is not a file")
    sample(page, "cat")
    expect(page.get_by_role("alert")).to_be_hidden()
    the_answer(page, "answered")


def test_a_photographed_image(visit: Visit) -> None:
    page = visit(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a photo").tap()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files(CAT)
    the_answer(page, "answered")


def test_a_mouse_is_offered_no_camera(visit: Visit) -> None:
    page = visit()
    expect(page.get_by_role("button", name="Choose images")).to_be_visible()
    expect(page.get_by_role("button", name="Take a photo")).to_be_hidden()


def test_several_at_once_in_their_order(visit: Visit) -> None:
    page = visit()
    names = ["ship", "cat", "horse", "frog", "truck", "dog"]
    pick(page, *(DATA / f"{name}.png" for name in names))
    expect(page.locator(".answer[data-state=answered]")).to_have_count(6)
    assert [text.split()[0] for text in answers(page).get_by_role("heading").all_inner_texts()] == names
    shoot(page, "several")


def test_several_are_summed_up_filtered_and_saved(visit: Visit, tmp_path: Path, service: httpx.Client) -> None:
    page = visit(refused=(415,))
    formula = tmp_path / '=1+2,"x".png'
    shutil.copy(CAT, formula)
    unsure = service.post("/predict", content=CAT.read_bytes()).json()
    unsure["prediction_set"]["labels"] = ["cat", "dog"]
    page.route("**/predict?*", answering(unsure), times=1)
    pick(page, CAT)
    expect(answers(page)).to_contain_text("It may be cat or dog.")
    expect(page.get_by_role("group", name="Show")).to_be_hidden()

    pick(page, formula, *(DATA / f"{name}.png" for name in ("ship", "frog", "truck")), ROOT / "README.md")
    sample(page, "a chessboard")
    filters = page.get_by_role("group", name="Show").get_by_role("button")
    expect(filters).to_have_text(
        ["All 7", "Unsure 1", "Abstained 1", "Failed 1", "cat 2", "frog 1", "ship 1", "truck 1"]
    )
    assert "compact" in page.locator("#answers").get_attribute("class")
    page.get_by_role("button", name="Abstained 1").click()
    expect(answers(page)).to_have_text(re.compile("chessboard"))
    page.get_by_role("button", name="Abstained 1").click()
    expect(answers(page)).to_have_count(7)
    page.get_by_role("button", name="Unsure 1").click()
    expect(answers(page)).to_contain_text("or dog")
    expect(page.get_by_text("It may be cat or dog.")).to_be_hidden()
    page.get_by_role("button", name="Details of cat.png").click()
    expect(page.get_by_text("It may be cat or dog.")).to_be_visible()
    shoot(page, "compact")

    def saved(name: str) -> str:
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        return Path(download.value.path()).read_bytes().decode("utf-8-sig")

    rows = list(csv.DictReader(StringIO(saved("Save as CSV"), newline="")))
    assert [row["state"] for row in rows] == ["abstained", *["answered"] * 4, "failed", "unsure"]
    assert [row["label"] for row in rows] == ["", "cat", "ship", "frog", "truck", "", "cat"]
    assert rows[1]["file"] == f"'{formula.name}"
    assert rows[6]["prediction_set"] == "cat|dog"
    assert rows[5]["error"] == "unsupported_media_type"
    kept = json.loads(saved("Save as JSON"))
    assert [each["state"] for each in kept] == [row["state"] for row in rows]
    assert kept[1]["file"] == formula.name
    assert kept[6]["answer"] == unsure
    assert kept[5]["error"]["code"] == "unsupported_media_type"

    page.get_by_role("button", name="Remove cat.png").click()
    expect(filters.first).to_have_text("All 6")
    expect(answers(page)).to_have_count(6)
    expect(filters.first).to_have_attribute("aria-pressed", "true")

    page.get_by_role("button", name="Abstained 1").click()
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Sets contain the true class").select_option("0.95")
    expect(page.locator(".answer[data-state=busy]")).to_have_count(0)
    expect(answers(page)).to_have_text(re.compile("chessboard"))  # still that alone


def test_more_than_a_visitor_may_want_are_cut(visit: Visit) -> None:
    page = visit()
    pick(page, *[CAT] * 61)
    expect(page.get_by_role("status").last).to_contain_text("These are the first 60 of your 61 images.")
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator(".answer[data-state=answered]")).to_have_count(60)
    expect(page.get_by_role("status").first).to_have_text(re.compile("60 images: 60 answered, 0 unsure"))
    for width, height in ((1240, 3_000), (360, 7_500)):
        page.set_viewport_size({"width": width, "height": 740})
        shoot(page, f"many-{width}")
        assert page.evaluate("document.documentElement.scrollHeight") < height
    pick(page, CAT)
    expect(page.get_by_role("status").last).to_have_text("")


def test_one_unlike_what_the_model_knows(visit: Visit, service: httpx.Client) -> None:
    page = visit()
    sample(page, "a chessboard")
    card = the_answer(page, "abstained")
    expect(card.get_by_role("heading")).to_have_text("I don’t know")
    threshold = service.get("/model").json()["photographs"]["abstention"]["threshold"]
    expect(card).to_contain_text(f"Above {threshold:.3f} the model does not answer")
    measured = service.get("/metrics/report").json()["photographs"]["abstention"]
    kept, refused = (f"{measured[name]['value'] * 100:.1f}" for name in ("kept", "refused"))
    abstained = f"{100 - float(kept):.1f}"
    expect(card).to_contain_text(re.compile(rf"abstains from {abstained}\s% of .+ classes, and from {refused}\s% of"))
    expect(card).not_to_contain_text("plausible")
    expect(page.get_by_role("status").first).to_contain_text("The model abstains")
    shoot(page, "abstains")


WORDS = {
    "thumbnails": r"Only cat is plausible\. .+ 99\s% .+ for thumbnails .+ Of 10,000 test thumbnails, {}\s% had theirs",
    "photographs": r"class 99\s% of the time, for photographs .+ Of 1,530 test photographs, {}\s% had theirs in it\.",
    "several": r"It may be cat, dog or frog\. .+ A smaller set would do so less often\.",
    "all": r"It may be cat, dog, frog, bird, deer or one of 5 others\. No class can be ruled out\.",
    "no level": r"The probabilities were measured on thumbnails\. There is no prediction set for them\.",
    "older": r"The model was not measured on pictures of this kind\. Nothing is promised for this answer\.",
}


def test_an_answer_says_what_was_measured_for_its_kind_of_picture(visit: Visit, service: httpx.Client) -> None:
    report = service.get("/metrics/report").json()
    held = {
        kind: f"{level['served_coverage'] * 100:.1f}"
        for kind, part in (("thumbnails", report), ("photographs", report["photographs"]))
        for level in part["conformal"]["levels"]
        if level["coverage"] == 0.99
    }
    labels = ["cat", "dog", "frog", "bird", "deer", "horse", "ship", "truck", "airplane", "automobile"]
    told = service.post("/predict", content=CAT.read_bytes()).json()
    promises_nothing = {"prediction_set": None, "abstain": None, "ood_score": None, "ood_threshold": None}
    changes = {
        "thumbnails": {},
        "photographs": {"measured_on": "photographs"},
        "several": {"prediction_set": {"coverage": 0.99, "labels": labels[:3]}},
        "all": {"prediction_set": {"coverage": 0.99, "labels": labels}},
        "no level": {"prediction_set": None},
        "older": {"measured_on": None, **promises_nothing},
    }
    page = visit()
    for case, change in changes.items():
        page.route("**/predict?*", answering({**told, **change}), times=1)
        pick(page, CAT)
        expect(answers(page).first).to_contain_text(re.compile(WORDS[case].format(held.get(case))))


def test_labels_that_cannot_be_told_apart(visit: Visit, service: httpx.Client) -> None:
    """Of the samples, the airplane's set has two at the shipped bundle; whichever has several says so."""
    page = visit()
    sample(page, "airplane")
    card = the_answer(page, "answered")
    labels = service.post("/predict", content=(DATA / "airplane.png").read_bytes()).json()["prediction_set"]["labels"]
    words = f"It may be {' or '.join(labels)}." if len(labels) == 2 else f"Only {labels[0]} is plausible."
    expect(card).to_contain_text(words)
    expect(card.get_by_role("listitem").filter(has_text="in the set")).to_have_count(len(labels))


def test_all_classes_on_demand(visit: Visit) -> None:
    page = visit()
    sample(page, "cat")
    card = the_answer(page, "answered")
    expect(card.get_by_role("listitem")).to_have_count(4)
    card.get_by_role("button", name="All classes").click()
    expect(card.get_by_role("listitem")).to_have_count(10)
    card.get_by_role("button", name="Fewer classes").click()
    expect(card.get_by_role("listitem")).to_have_count(4)


def test_where_the_model_looks_on_demand(visit: Visit) -> None:
    page = visit()
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/explain" in request.url else None)
    sample(page, "cat")
    card = the_answer(page, "answered")
    toggle = card.get_by_role("button", name="Where it looks")
    expect(toggle).to_have_attribute("aria-pressed", "false")
    assert asked == []

    toggle.click()
    drawn = card.get_by_role("img", name="Activation map: where the model sees cat")
    expect(drawn).to_be_visible()
    assert drawn.evaluate("image => image.naturalWidth") == 256
    expect(card.get_by_role("img", name="Your image")).to_be_hidden()

    card.get_by_label("Evidence for").select_option("dog")
    expect(card.get_by_role("img", name="Activation map: where the model sees dog")).to_be_visible()
    assert [url.rpartition("=")[2] for url in asked] == ["3", "5"]
    shoot(page, "explained")

    toggle.click()
    expect(card.get_by_role("img", name="Your image")).to_be_visible()
    expect(card.get_by_label("Evidence for")).to_be_hidden()


def test_where_it_looks_in_an_image_that_only_the_service_can_read(visit: Visit) -> None:
    page = visit()
    sample(page, "cat")
    card = the_answer(page, "answered")
    card.get_by_role("img", name="Your image").dispatch_event("error")
    sign, toggle = card.locator(".no-picture"), card.get_by_role("button", name="Where it looks")
    expect(sign).to_be_visible()
    toggle.click()
    expect(card.get_by_role("img", name="Activation map")).to_be_visible()
    expect(sign).to_be_hidden()
    toggle.click()
    expect(sign).to_be_visible()


def test_the_same_request_as_code(visit: Visit, tmp_path: Path) -> None:
    page = visit("/?top_k=3&coverage=0.95&kind=photographs", permissions=["clipboard-read", "clipboard-write"])
    file = tmp_path / 'it\'s a "cat"; really.png'
    shutil.copy(CAT, file)
    pick(page, file)
    card = the_answer(page, "answered")

    def copied(language: str) -> str:
        show_code(card, language)
        card.get_by_role("button", name="Copy", exact=True).click()
        expect(card.get_by_role("button", name="Copied")).to_be_visible()
        return str(page.evaluate("navigator.clipboard.readText()"))

    def printed(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    shown = json.loads(copied("JSON"))
    assert (len(shown["predictions"]), shown["measured_on"]) == (3, "photographs")
    assert shown["prediction_set"]["coverage"] == 0.95
    command, option, body, url = shlex.split(copied("curl"))
    assert (command, option, body) == ("curl", "--data-binary", f"@{file.name}")
    assert httpx.post(url, content=file.read_bytes()).json()["predictions"] == shown["predictions"]
    assert str(shown["predictions"]) in printed(sys.executable, "-c", copied("Python"))
    (tmp_path / "ask.mjs").write_text(copied("JavaScript"))
    if shutil.which("node"):
        assert "label: 'cat'" in printed("node", "ask.mjs")


def test_without_a_clipboard_the_command_is_selected(visit: Visit) -> None:
    page = visit()
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('refused')); }")
    sample(page, "cat")
    card = the_answer(page, "answered")
    show_code(card, "curl")
    card.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("status").first).to_contain_text("The code is selected")
    assert page.evaluate("getSelection().toString()").startswith("curl --data-binary '@cat.png'")


def test_answers_can_be_removed(visit: Visit) -> None:
    page = visit()
    pick(page, CAT, DATA / "dog.png", DATA / "ship.png")
    expect(page.locator(".answer[data-state=answered]")).to_have_count(3)
    page.get_by_role("button", name="Remove cat.png").click()
    expect(answers(page)).to_have_count(2)
    expect(page.get_by_role("button", name="Remove dog.png")).to_be_focused()
    page.get_by_role("button", name="Clear all").click()
    expect(answers(page)).to_have_count(0)
    expect(page.get_by_text("Answers", exact=True)).to_be_hidden()
    expect(page.get_by_role("button", name="Choose images")).to_be_focused()


def test_settings_stand_in_the_address_and_apply_to_the_answers(visit: Visit) -> None:
    page = visit("/?coverage=0.995&kind=thumbnails", permissions=["clipboard-read", "clipboard-write"])
    sample(page, "cat")
    card = the_answer(page, "answered")
    expect(card).to_contain_text(re.compile(r"99\.5\s% of the time, for thumbnails"))
    level = page.get_by_label("Sets contain the true class")
    expect(level).to_have_value("0.995")
    expect(page.get_by_label("Treat pictures as")).to_have_value("thumbnails")
    level.select_option("0.95")
    expect(card).to_contain_text(re.compile(r"95\s% of the time, for thumbnails"))
    page.get_by_label("Treat pictures as").select_option("photographs")
    expect(card).to_contain_text(re.compile(r"95\s% of the time, for photographs"))
    page.get_by_label("Classes to list").fill("2")
    page.get_by_label("Classes to list").press("Enter")
    expect(card.get_by_role("listitem")).to_have_count(2)
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    link = page.evaluate("navigator.clipboard.readText()")
    assert urlsplit(link).query == "coverage=0.95&kind=photographs&top_k=2"
    card.get_by_role("button", name="Where it looks").click()
    expect(card.get_by_role("img", name="Activation map")).to_be_visible()
    level.select_option("")
    expect(page).to_have_url(re.compile(r"\?kind=photographs&top_k=2#classify$"))
    expect(card.get_by_role("img", name="Your image")).to_be_visible()
    shoot(page, "settings")


def test_settings_that_the_model_does_not_have(visit: Visit) -> None:
    page = visit("/?coverage=0.5&top_k=3&kind=constructor&toString=1")
    sentence = "The address asks for coverage=0.5 and kind=constructor. This model does not have that"
    expect(page.get_by_text(sentence)).to_be_visible()
    sample(page, "cat")
    expect(the_answer(page, "answered").get_by_role("listitem")).to_have_count(3)
