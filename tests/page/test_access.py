"""For everybody: by keyboard, by ear, in the dark, without motion, on a phone."""

import re

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.conftest import DATA, ROOT
from tests.page.conftest import Visit, shoot
from tests.page.steps import CAT, answers, open_model, pick, sample, show_code, the_answer

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])
SIZES = pytest.mark.parametrize("size", [{}, PHONE], ids=["desktop", "phone"])


def assert_accessible(page: Page) -> None:
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert len(results.response["passes"]) > 20


def show_every_state(page: Page) -> None:
    """An answer with its map and command open, one that abstains, one that failed, and the refusal of a paste."""
    pick(page, CAT, ROOT / "app/web/samples/chessboard.png", ROOT / "README.md")
    for state in ("answered", "abstained", "failed"):
        expect(page.locator(f".answer[data-state={state}]")).to_have_count(1)
    card = answers(page).first
    card.get_by_role("button", name="All classes").click()
    card.get_by_role("button", name="Where it looks").click()
    show_code(card, "curl")
    expect(card.get_by_role("img", name="Activation map")).to_be_visible()
    page.get_by_text("Settings", exact=True).click()
    page.evaluate("document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: new DataTransfer()}))")
    expect(page.get_by_role("alert")).to_be_visible()


@pytest.mark.parametrize(
    ("scheme", "size"),
    [
        pytest.param("light", {}, id="desktop-light"),
        pytest.param("dark", PHONE, id="phone-dark"),
        pytest.param("dark", {}, id="desktop-dark", marks=pytest.mark.slow),
        pytest.param("light", PHONE, id="phone-light", marks=pytest.mark.slow),
    ],
)
def test_axe_finds_nothing(visit: Visit, scheme: str, size: dict[str, object]) -> None:
    page = visit(color_scheme=scheme, refused=(415,), **size)
    assert_accessible(page)
    show_every_state(page)
    assert_accessible(page)
    kind = "phone" if size else "desktop"
    shoot(page, f"classify-{kind}-{scheme}")
    panel = open_model(page)
    panel.get_by_role("gridcell", name="cat, taken for dog").click()
    panel.get_by_text("The same as a table").click()
    assert_accessible(page)
    shoot(page, f"model-{kind}-{scheme}")


@SCHEMES
def test_axe_finds_nothing_in_many_answers_and_the_camera(visit: Visit, scheme: str) -> None:
    page = visit(color_scheme=scheme, refused=(415,))
    pick(page, *(DATA / f"{name}.png" for name in ("cat", "dog", "ship", "frog", "deer")), ROOT / "README.md")
    sample(page, "a chessboard")
    expect(page.locator(".answer[data-state=busy]")).to_have_count(0)
    page.get_by_role("button", name="Details of dog.png").click()
    page.get_by_role("button", name="Use the camera live").click()
    expect(page.get_by_role("button", name="Keep this answer")).to_be_visible()
    assert_accessible(page)


def test_axe_finds_what_is_wrong(visit: Visit) -> None:
    page = visit()
    page.evaluate("document.querySelector('#choose').textContent = ''")
    assert Axe().run(page).violations_count > 0


# Of what axe does not look at: text within SVG. WCAG 2.2, relative luminance and contrast.
CONTRASTS = """
() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const over = (ink, alpha, ground) => ink.map((value, index) => alpha * value + (1 - alpha) * ground[index]);
  const linear = (value) => (value / 255 <= 0.03928 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const fill = (element) => channels(getComputedStyle(element).fill).slice(0, 3);
  return [...document.querySelectorAll(".cell")].filter((cell) => cell.querySelector("text")).map((cell) => {
    const ink = cell.querySelector(".ink");
    const ground = over(fill(ink), Number(ink.getAttribute("fill-opacity")), fill(cell.querySelector(".ground")));
    const [low, high] = [luminance(ground), luminance(fill(cell.querySelector("text")))].sort((a, b) => a - b);
    return [cell.ariaLabel, (high + 0.05) / (low + 0.05)];
  });
}
"""


@SCHEMES
def test_counts_stand_out_from_their_cells(visit: Visit, service: httpx.Client, scheme: str) -> None:
    """In whatever a model confuses: from nearly nothing to nearly all of a class."""
    report = service.get("/metrics/report").json()
    for row, counts in enumerate(report["confusion_matrix"]):
        right = 50 + 100 * row
        counts[:] = [0] * 10
        counts[row], counts[row - 1] = right, 1000 - right
    page = visit(color_scheme=scheme)
    page.route("**/metrics/report", lambda route: route.fulfill(json=report))
    open_model(page)
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 10
    assert [each for each in contrasts if each[1] < 4.5] == []


def test_by_keyboard_alone(visit: Visit) -> None:
    page = visit()
    page.keyboard.press("Tab")
    expect(page.get_by_role("tab", name="Classify")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Choose images")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(CAT)
    the_answer(page, "answered")
    expect(page.get_by_role("button", name="Choose images")).to_be_focused()

    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Use the camera live")).to_be_focused()
    for _ in range(12):  # the samples
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Try the sample: a chessboard")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator(".answer[data-state=abstained]")).to_have_count(1)

    card = answers(page).first
    page.keyboard.press("Tab")  # the settings
    for focused in (
        page.get_by_role("button", name="Clear all"),
        page.get_by_role("button", name="All 2"),
        page.get_by_role("button", name="Abstained 1"),
        page.get_by_role("button", name="cat 1"),
        page.get_by_role("button", name="Save as CSV"),
        page.get_by_role("button", name="Save as JSON"),
        card.get_by_role("button", name="All classes"),
        card.get_by_role("button", name="Where it looks"),
    ):
        page.keyboard.press("Tab")
        expect(focused).to_be_focused()
    page.keyboard.press("Enter")
    expect(card.get_by_role("img", name="Activation map")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(card.get_by_role("code")).to_be_visible()
    for focused in (
        card.get_by_label("As", exact=True),
        card.get_by_role("button", name="Copy"),
        card.get_by_label("Evidence for"),
        card.get_by_role("button", name="Remove chessboard.png"),
    ):
        page.keyboard.press("Tab")
        expect(focused).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Remove cat.png")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Choose images")).to_be_focused()

    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="The model")).to_be_focused()
    expect(page.get_by_role("grid")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("region", name="Scores by class")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Class", exact=True)).to_be_focused()


def test_what_has_the_focus_shows_it(visit: Visit) -> None:
    page = visit()
    open_model(page)
    page.get_by_role("tab", name="The model").focus()
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        shown = page.evaluate(
            """() => {
                const style = getComputedStyle(document.activeElement);
                const ground = document.activeElement.querySelector?.(".ground");
                const width = Number.parseFloat(ground ? getComputedStyle(ground).strokeWidth : style.outlineWidth);
                return [document.activeElement.tagName, width, ground !== null || style.outlineStyle !== "none"];
            }"""
        )
        if shown[0] == "BODY":
            break
        seen.append(shown)
    assert {tag for tag, _, _ in seen} >= {"BUTTON", "DIV", "g", "INPUT", "SUMMARY", "A"}
    assert [each for each in seen if each[1] < 2 or not each[2]] == []


def test_tabs_by_their_pattern(visit: Visit) -> None:
    page = visit()
    classify, model = page.get_by_role("tab", name="Classify"), page.get_by_role("tab", name="The model")
    classify.focus()
    for key, chosen in (
        ("ArrowRight", model),
        ("ArrowRight", classify),
        ("ArrowLeft", model),
        ("Home", classify),
        ("End", model),
    ):
        page.keyboard.press(key)
        expect(chosen).to_be_focused()
        expect(chosen).to_have_attribute("aria-selected", "true")
        expect(page.locator("[role=tab][tabindex='-1']")).to_have_count(1)
        expect(page.get_by_role("tabpanel")).to_have_count(1)
    expect(page.get_by_role("tabpanel", name="The model")).to_be_visible()


def test_the_address_says_which_tab(visit: Visit) -> None:
    page = visit("/#model")
    expect(page.get_by_role("grid")).to_be_visible()
    page.get_by_role("tab", name="Classify").click()
    expect(page).to_have_url(re.compile("#classify$"))
    page.go_back()
    expect(page.get_by_role("grid")).to_be_visible()


def test_an_image_that_comes_while_the_model_is_shown_is_answered(visit: Visit) -> None:
    page = visit()
    open_model(page)
    page.set_input_files("#files", DATA / "ship.png")
    the_answer(page, "answered")
    expect(page.get_by_role("tab", name="Classify")).to_have_attribute("aria-selected", "true")


def test_the_dark_is_dark(visit: Visit) -> None:
    brightness = "sum => getComputedStyle(document.body)[sum].match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
    for scheme, dark in (("light", False), ("dark", True)):
        page = visit(color_scheme=scheme)
        ground, ink = (page.evaluate(brightness, name) for name in ("backgroundColor", "color"))
        assert (ground < ink) is dark
        assert abs(ground - ink) > 500


def test_nothing_moves_for_whom_that_is_too_much(visit: Visit) -> None:
    moving = "() => document.getAnimations().length"
    styles = "all => all.map(each => getComputedStyle(each).animationName)"
    still, lively = visit(), visit(reduced_motion="no-preference")
    for page in (still, lively):
        sample(page, "cat")
        the_answer(page, "answered")
    names = [page.locator(".answer, .track i").evaluate_all(styles) for page in (still, lively)]
    assert set(names[0]) == {"none"}
    assert set(names[1]) == {"rise", "grow"}
    assert still.evaluate(moving) == 0


def test_a_phone_scrolls_in_one_direction(visit: Visit) -> None:
    page = visit(refused=(415,), **PHONE)
    sideways = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(sideways) == 0
    show_every_state(page)
    assert page.evaluate(sideways) == 0
    open_model(page)
    assert page.evaluate(sideways) == 0
    # Fingers need room: WCAG 2.2, 2.5.8 asks for 24 pixels.
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 24, button.inner_text()
