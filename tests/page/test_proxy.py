"""The page behind a real nginx (Debian: `apt-get install nginx-light`), whose own refusals are pages of HTML."""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.benchmarks.serving.balancer import free_port, running_nginx
from tests.deploy.conftest import program
from tests.page.conftest import Visit, shoot
from tests.page.steps import pick, sample, the_answer

# Each location is a proxy of its own in front of the same service. Its predictions are refused, the page is not.
CONFIGURATION = """
pid {folder}/pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    limit_req_zone $server_port zone=limited:32k rate=1r/m;
    limit_req_zone $server_port zone=busy:32k rate=1r/m;
    server {{
        listen 127.0.0.1:{port};
        location /small/ {{ proxy_pass {service}; client_max_body_size 300k; }}
        location /guarded/ {{ proxy_pass {service}; }}
        location = /guarded/predict {{ auth_basic staff; auth_basic_user_file {folder}/users; }}
        location /limited/ {{ proxy_pass {service}; }}
        location = /limited/predict {{ limit_req zone=limited; limit_req_status 429; proxy_pass {service}predict; }}
        location /busy/ {{ proxy_pass {service}; }}
        location = /busy/predict {{ limit_req zone=busy; proxy_pass {service}predict; }}
        location /down/ {{ proxy_pass {service}; }}
        location = /down/predict {{ proxy_pass http://127.0.0.1:{dead}; }}
        location /silent/ {{ proxy_pass {service}; }}
        location = /silent/predict {{ proxy_pass http://127.0.0.1:{silent}; proxy_read_timeout 100ms; }}
    }}
}}
"""


@pytest.fixture(scope="module")
def proxy(service: httpx.Client) -> Iterator[httpx.Client]:
    """A client of nginx."""
    program("nginx", "nginx-light")
    port = free_port()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))  # takes connections, and never answers
        (folder / "users").write_text("staff:{PLAIN}sesame\n")
        text = CONFIGURATION.format(
            folder=folder,
            port=port,
            service=f"{str(service.base_url).rstrip('/')}/",
            dead=free_port(),
            silent=silent.getsockname()[1],
        )
        stack.enter_context(running_nginx(text, port, folder))
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}"))
        for place in ("limited", "busy"):
            client.get(f"/{place}/predict")  # the only request of this minute that is let through
        yield client


@pytest.mark.parametrize(
    ("place", "status", "title", "advice"),
    [
        ("guarded", 401, "The proxy in front of the service refuses access", "a login or a key"),
        ("limited", 429, "Too many requests", "Try again in a while"),
        ("down", 502, "The service is not reachable behind its proxy", "the service does not"),
        ("busy", 503, "The service is not reachable behind its proxy", "the service does not"),
        ("silent", 504, "The service is not reachable behind its proxy", "the service does not"),
    ],
)
def test_what_nginx_refuses_is_explained(
    visit: Visit, proxy: httpx.Client, place: str, status: int, title: str, advice: str
) -> None:
    # Without credentials, the browser's own question for them would wait for ever.
    credentials = {"username": "visitor", "password": "guess"}
    page = visit(f"/{place}/", at=proxy, refused=(status,), http_credentials=credentials)
    sample(page, "cat")
    card = the_answer(page, "failed")
    expect(card.get_by_role("heading")).to_have_text(title)
    expect(card).to_contain_text(advice)
    expect(card).to_contain_text(f"Details: HTTP status {status}, not from the service")
    expect(card.get_by_role("button", name="Try again")).to_be_visible()
    expect(page.get_by_label("API key")).to_be_hidden()


def test_a_file_too_large_for_nginx_is_made_smaller(visit: Visit, proxy: httpx.Client, photo: Path) -> None:
    assert photo.stat().st_size > 300 * 1024
    page = visit("/small/", at=proxy, refused=(413,))
    pick(page, photo)
    card = the_answer(page, "failed")
    expect(card.get_by_role("heading")).to_have_text("This file is too large")
    expect(card).to_contain_text("The proxy in front of the service accepts only smaller uploads. This file has 3")
    shoot(page, "too-large-for-the-proxy")
    card.get_by_role("button", name="Make it smaller here").click()
    expect(card).to_contain_text("photo-smaller.jpg")
    expect(page.locator(".answer:is([data-state=answered], [data-state=abstained])")).to_have_count(1)
