"""The page in a real browser, against a real server. Needs Chromium (Debian: `apt-get install chromium`).

Whatever a test does, afterwards its pages must have asked no other host, violated no Content-Security-Policy, met no
error in a script and no answer of failure but those that the test named. Pictures go to build/screenshots.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, expect, sync_playwright

from app.settings import Settings
from tests.app.server import serve
from tests.conftest import ROOT

SCREENSHOTS = ROOT / "build/screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
expect.set_options(timeout=20_000)


@dataclass
class Watch:
    """What a page did that it must not do, and the refusals (HTTP statuses) that its test expects."""

    host: str
    refused: tuple[int, ...] = ()
    faults: list[str] = field(default_factory=list)

    def attach(self, page: Page) -> None:
        page.on("request", self.request)
        page.on("response", self.response)
        page.on("console", self.console)
        page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))

    def request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme != "blob" and address.netloc != self.host:
            self.faults.append(f"another host: {request.url}")

    def response(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.refused:
            self.faults.append(f"{response.status}: {response.url}")

    def console(self, message: ConsoleMessage) -> None:
        # Refusals are judged above, by their status.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.faults.append(f"console: {message.text}")


Visit = Callable[..., Page]


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where tests are trusted, the lack of a browser is a failure and no reason to skip."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None and os.environ.get("CI") == "true":
        pytest.fail(f"the page's tests need a browser, one of {', '.join(NAMES)}: apt-get install chromium")
    if path is None:
        pytest.skip(f"no browser, one of {', '.join(NAMES)}: apt-get install chromium")
    return path


# Of the package, not the session: while Playwright runs, its event loop is this thread's, and others need theirs.
@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[Browser]:
    arguments = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a camera, and no question
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium's sandbox refuses to work for root, which containers often are
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield running
        running.close()


@contextmanager
def served(**environment: object) -> Iterator[httpx.Client]:
    """A service with these settings; a client of it."""
    with serve(**environment) as (process, client):
        # A log that nobody reads fills its pipe, and then stops the service.
        reader = Thread(target=process.stderr.read)
        reader.start()
        try:
            yield client
        finally:
            process.terminate()
            reader.join()


@pytest.fixture(scope="package")
def service() -> Iterator[httpx.Client]:
    """The service as it comes, shared by tests; a client of it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(name.upper(), raising=False)
        with served() as client:
            yield client


@pytest.fixture
def visit(browser: Browser, service: httpx.Client) -> Iterator[Visit]:
    """`visit(path="/", at=service, refused=(), **options)` opens the page; options are those of a context."""
    with visiting(browser, service) as opening:
        yield opening


@contextmanager
def visiting(browser: Browser, service: httpx.Client) -> Iterator[Visit]:
    """What `visit` gives; it closes the pages, and looks at what they did."""
    opened = []

    def open_page(
        path: str = "/", *, at: httpx.Client = service, refused: tuple[int, ...] = (), **options: object
    ) -> Page:
        context = browser.new_context(**{"base_url": str(at.base_url), "reduced_motion": "reduce", **options})
        page = context.new_page()
        page.set_default_timeout(20_000)
        watch = Watch(at.base_url.netloc.decode(), refused)
        watch.attach(page)
        # Playwright catches file dialogs from the first listener on: one that comes with the click may come too late.
        page.on("filechooser", lambda _: None)
        opened.append((context, watch))
        page.goto(path)
        return page

    yield open_page
    for context, _ in opened:
        context.close()
    assert [fault for _, watch in opened for fault in watch.faults] == []


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A PNG of 400x300 pixels with more than 100 kB, of nothing in particular."""
    import numpy as np
    from PIL import Image

    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(300, 400, 3), dtype=np.uint8)).save(path)
    return path


def shoot(page: Page, name: str) -> None:
    """A picture of the whole page, for people to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
