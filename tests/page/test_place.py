"""Wherever it is served, and from nowhere else."""

import re

from playwright.sync_api import expect

from tests.page.conftest import Visit, Watch, served
from tests.page.steps import open_model, sample, show_code, the_answer

PREFIX = "/images/cifar10"


def test_under_a_prefix(visit: Visit) -> None:
    with served(ROOT_PATH=PREFIX) as client:
        page = visit(PREFIX, at=client)
        expect(page).to_have_url(re.compile(f"{PREFIX}/$"))
        paths = []
        page.on("request", lambda request: paths.append(request.url))
        sample(page, "cat")
        card = the_answer(page, "answered")
        card.get_by_role("button", name="Where it looks").click()
        expect(card.get_by_role("img", name="Activation map")).to_be_visible()
        show_code(card, "curl")
        expect(card.get_by_role("code")).to_contain_text(f"{PREFIX}/predict?top_k=10'")
        open_model(page)
        assert len(paths) >= 4
        assert [path for path in paths if not path.startswith("blob:") and PREFIX not in path] == []
        page.get_by_role("link", name="API documentation").click()
        expect(
            page.get_by_text("POST /predict", exact=False).or_(page.locator("#swagger-ui .opblock")).first
        ).to_be_visible()


DEEDS = {
    "image": "document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.2/pixel.png'}))",
    "style": "document.body.setAttribute('style', 'color: red')",
    "script": "document.body.append(Object.assign(document.createElement('script'), {src: 'data:text/javascript,1'}))",
    "markup": "document.body.innerHTML = '<p>'",
    "fetch": "fetch('http://127.0.0.2/').catch(() => {})",
    "error": "setTimeout(() => { throw new Error('bug'); })",
    "missing": "fetch('nowhere')",
}


def test_what_must_not_happen_would_be_seen(visit: Visit) -> None:
    """The watch over all these tests sees what it watches for."""
    page = visit(refused=(404,))
    other = page.context.new_page()
    watch = Watch(host=page.evaluate("location.host"))
    watch.attach(other)
    for name, deed in DEEDS.items():
        other.goto("/")
        watch.faults.clear()
        other.evaluate(f"() => {{ try {{ {deed} }} catch {{ }} }}")
        for _ in range(200):
            if watch.faults:
                break
            other.wait_for_timeout(50)  # events are handed over while Playwright waits
        assert watch.faults != [], name
