"""Make docs/page.png, the picture of the page in README.md, from the shipped bundle. Needs Chromium.

python -m tests.benchmarks.docs.picture
"""

import os
import shutil

from playwright.sync_api import expect, sync_playwright

from tests.conftest import ROOT
from tests.page.conftest import NAMES, served
from tests.page.steps import answers, sample


def main() -> None:
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        raise SystemExit(f"no browser, one of {', '.join(NAMES)}: apt-get install chromium")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with served() as client, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(base_url=str(client.base_url), viewport={"width": 1240, "height": 900})
        page.goto("/")
        for name in ("a chessboard", "automobile"):
            sample(page, name)
            expect(page.locator(".answer[data-state=answered], .answer[data-state=abstained]").first).to_be_visible()
        expect(answers(page)).to_have_count(2)
        answers(page).first.get_by_role("button", name="Where it looks").click()
        expect(answers(page).first.get_by_role("combobox")).to_be_visible()
        page.wait_for_load_state("networkidle")
        page.screenshot(path=ROOT / "docs/page.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
