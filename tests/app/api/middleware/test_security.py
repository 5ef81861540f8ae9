from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from app.api.middleware.security_headers import _relative
from tests.app.problems import assert_problem

MakeClient = Callable[..., TestClient]


@pytest.fixture
def guarded(make_client: MakeClient) -> TestClient:
    return make_client(api_keys="first,second")


@pytest.mark.parametrize("key", ["first", "second"])
def test_a_known_key_is_accepted(guarded: TestClient, cat: bytes, key: str) -> None:
    assert guarded.post("/predict", content=cat, headers={"Authorization": f"Bearer {key}"}).status_code == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer third", "Basic first", "first", "Bearer first second", "Bearer é"]
)
def test_a_missing_or_unknown_key_is_refused(guarded: TestClient, cat: bytes, header: str) -> None:
    response = guarded.post("/predict", content=cat, headers={"Authorization": header.encode()})
    assert_problem(response, 401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"


def test_only_probes_and_the_page_need_no_key(guarded: TestClient) -> None:
    for path in ("/livez", "/readyz", "/", "/assets/web/main.js", "/problems/unauthorized"):
        assert guarded.get(path).status_code == 200, path
    outside = ("/assets/web/../../model", "/assets/web/%2e%2e/%2e%2e/model", "/assets/web//model")
    for path in (*outside, "/problems/../model", "/problems//model"):
        assert guarded.get(path).status_code in (401, 404), path
    for path in ("/docs", "/metrics", "/metrics/report", "/model", "/openapi.json", "/nothing"):
        assert guarded.get(path, follow_redirects=False).status_code == 401, path


SCRAPER, USER, ADMIN = "scraper", "user", "admin"


@pytest.mark.parametrize(
    ("settings", "for_metrics", "for_others"),
    [
        ({"api_keys": USER}, {USER}, {USER}),
        ({"metrics_key": SCRAPER}, {SCRAPER}, None),
        ({"metrics_key": SCRAPER, "admin_keys": ADMIN}, {SCRAPER, ADMIN}, None),
        ({"metrics_key": SCRAPER, "api_keys": USER, "admin_keys": ADMIN}, {SCRAPER, USER, ADMIN}, {USER, ADMIN}),
    ],
    ids=["API_KEYS", "METRICS_KEY", "METRICS_KEY and ADMIN_KEYS", "all"],
)
def test_a_scraper_s_key_opens_the_metrics_alone(
    make_client: MakeClient, settings: dict[str, str], for_metrics: set[str], for_others: set[str] | None
) -> None:
    client = make_client(root_path="/images", **settings)

    def opened(path: str) -> set[str]:
        """The keys with which the path answers; "" is no key."""
        keys = ("", SCRAPER, USER, ADMIN)
        return {key for key in keys if client.get(path, headers={"Authorization": f"Bearer {key}"}).is_success}

    assert opened("/metrics") == opened("/images/metrics") == for_metrics
    for path in ("/model", "/metrics/report"):
        assert opened(path) == (for_others or {"", SCRAPER, USER, ADMIN}), path


def test_every_answer_has_the_security_headers(client: TestClient) -> None:
    for path in ("/livez", "/model", "/nothing", "/docs"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers


def test_cors_is_off_until_origins_are_named(client: TestClient, make_client: MakeClient, cat: bytes) -> None:
    origin = {"Origin": "https://example.org"}
    assert "access-control-allow-origin" not in client.post("/predict", content=cat, headers=origin).headers
    open_to = make_client(cors_origins="https://example.org", api_keys="key")
    refused = open_to.post("/predict", content=cat, headers=origin)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://example.org"  # so that a page can read why
    preflight = open_to.options("/predict", headers=origin | {"Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 200
    other = open_to.get("/livez", headers={"Origin": "https://example.com"})
    assert "access-control-allow-origin" not in other.headers


def test_a_key_is_compared_with_all_known_keys(
    guarded: TestClient, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the time says nothing about which key matched, or how much of one."""
    compared: list[tuple[int, int]] = []

    def compare(given: bytes, known: bytes) -> bool:
        compared.append((len(given), len(known)))
        return given == known

    monkeypatch.setattr("app.api.middleware.api_keys.hmac.compare_digest", compare)
    for key in ("first", "second", "f", "x" * 1000):
        compared.clear()
        guarded.post("/predict", content=cat, headers={"Authorization": f"Bearer {key}"})
        assert compared == [(32, 32)] * 2


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "a b", ""])
@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/model/", "/model"),
        ("/model/?a=b&c", "/model?a=b&c"),
        ("//evil.example/..;/model/", None),
        ("/v2/models/", "/v2/models"),
    ],
)
def test_no_redirect_leads_to_a_host(client: TestClient, host: str, path: str, location: str | None) -> None:
    answer = client.get(f"http://testserver{path}", headers={"Host": host}, follow_redirects=False)
    assert answer.headers.get("location") == location
    assert "evil" not in answer.headers.get("location", "")


@pytest.mark.parametrize(
    ("built", "relative"),
    [
        ("http://evil.example/a?b=c", "/a?b=c"),
        ("https://evil.example//evil.example/a", "/evil.example/a"),
        ("//evil.example/a", "/a"),
        ("http://evil.example/\\\\evil.example", "/evil.example"),
        ("http://evil.example", "/"),
        ("/a", "/a"),
    ],
)
def test_a_redirect_names_only_a_path(built: str, relative: str) -> None:
    assert _relative(built) == relative
