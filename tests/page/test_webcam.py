"""The camera, live. Chromium's own shows a green picture with a moving circle."""

import re

from playwright.sync_api import Page, expect

from tests.page.conftest import Visit, shoot
from tests.page.steps import answers

HEADLINE = re.compile("I don’t know|%")


def start(page: Page) -> None:
    page.get_by_role("button", name="Use the camera live").click()
    expect(page.get_by_role("region", name="Camera").locator(".headline")).to_have_text(HEADLINE)


def hide(page: Page) -> None:
    page.evaluate("Object.defineProperty(document, 'hidden', { configurable: true, get: () => true })")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


TRACK = "() => { window.track = document.querySelector('video').srcObject.getVideoTracks()[0]; }"


def test_the_camera_is_classified_live_until_it_is_stopped(visit: Visit) -> None:
    page = visit()
    page.clock.install(time=0)
    page.clock.pause_at(3600)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/predict?" in request.url else None)
    start(page)
    page.evaluate(TRACK)
    camera = page.get_by_role("region", name="Camera")
    expect(camera.get_by_role("button", name="Stop the camera")).to_be_focused()
    page.clock.run_for(999)
    assert len(asked) == 1
    with page.expect_request("**/predict?*"):
        page.clock.run_for(1)
    shoot(page, "camera")
    camera.get_by_role("button", name="Keep this answer").click()
    expect(answers(page)).to_contain_text(re.compile(r"camera-[\d-]+\.jpg"))
    camera.get_by_role("button", name="Stop the camera").click()
    expect(camera).to_be_hidden()
    expect(page.get_by_role("button", name="Use the camera live")).to_be_focused()
    assert page.evaluate("window.track.readyState") == "ended"


def test_a_hidden_page_and_the_model_s_tab_stop_the_camera(visit: Visit) -> None:
    page = visit()
    start(page)
    page.evaluate(TRACK)
    hide(page)
    expect(page.get_by_role("region", name="Camera")).to_be_hidden()
    expect(page.get_by_text("The camera was stopped, because the page was hidden.")).to_be_visible()
    assert page.evaluate("window.track.readyState") == "ended"
    start(page)
    page.evaluate(TRACK)
    page.get_by_role("tab", name="The model").click()
    assert page.evaluate("window.track.readyState") == "ended"


def test_a_camera_that_comes_too_late_is_released(visit: Visit) -> None:
    page = visit()
    page.evaluate(
        """() => {
            const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
            const allowed = new Promise((resolve) => { window.allow = resolve; });
            window.wanted = new Promise((resolve) => {
                navigator.mediaDevices.getUserMedia = async (wanted) => {
                    const stream = await real(wanted);
                    window.track = stream.getVideoTracks()[0];
                    resolve();
                    await allowed;
                    return stream;
                };
            });
        }"""
    )
    page.get_by_role("button", name="Use the camera live").click()
    page.evaluate("() => window.wanted")
    hide(page)
    page.evaluate("async () => { window.allow(); await new Promise((resolve) => setTimeout(resolve)); }")
    assert page.evaluate("window.track.readyState") == "ended"
    expect(page.get_by_role("region", name="Camera")).to_be_hidden()


def test_a_camera_that_cannot_be_had(visit: Visit) -> None:
    page = visit()
    for name, sentence in (
        ("NotAllowedError", "The browser does not let this page use the camera."),
        ("NotFoundError", "There is no camera."),
    ):
        page.evaluate(
            "name => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', name)); }", name
        )
        page.get_by_role("button", name="Use the camera live").click()
        expect(page.get_by_role("alert")).to_contain_text(sentence)
        expect(page.get_by_role("region", name="Camera")).to_be_hidden()
