"""What a visitor does and sees, by the names that a screen reader tells."""

from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.conftest import DATA

CAT = DATA / "cat.png"


def pick(page: Page, *files: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose images").click()
    chooser.value.set_files(files)


def sample(page: Page, name: str) -> None:
    page.get_by_role("button", name=f"Try the sample: {name}").click()


def answers(page: Page) -> Locator:
    """The cards, the newest images first."""
    return page.get_by_role("article")


def the_answer(page: Page, state: str) -> Locator:
    """The only card, once it is in that state: answered, abstained or failed."""
    expect(page.locator(f".answer[data-state={state}]")).to_have_count(1)
    expect(answers(page)).to_have_count(1)
    return answers(page)


def show_code(card: Locator, language: str) -> None:
    choice = card.get_by_label("As", exact=True)
    if not choice.is_visible():
        card.get_by_text("As code").click()
    choice.focus()
    choice.select_option(language)


def open_model(page: Page) -> Locator:
    """The model's tab, with its charts drawn."""
    page.get_by_role("tab", name="The model").click()
    panel = page.get_by_role("tabpanel", name="The model")
    expect(panel.get_by_role("grid")).to_be_visible()
    expect(panel.get_by_role("img")).to_have_count(6)
    return panel
