"""deploy/nginx.conf agrees with the service's settings, and nginx balances, refuses and fails over as documented."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import uvicorn

from app.errors import NotFound, PayloadTooLarge, Problem, Unavailable
from app.settings import Settings
from tests.app.server import serve
from tests.benchmarks.serving.balancer import configuration, free_port, nginx
from tests.deploy.conftest import ROOT, services

CONFIGURATION = (ROOT / "deploy/nginx.conf").read_text()


def directive(name: str) -> str:
    """The value of the directive, which must occur exactly once."""
    (value,) = re.findall(rf"^ *{name} (.+?);", CONFIGURATION, re.MULTILINE)
    return value


class TestAgreesWithTheService:
    def test_the_body_limit_is_that_of_the_service(self) -> None:
        assert int(directive("client_max_body_size").removesuffix("m")) * 2**20 == Settings().max_request_bytes

    def test_timeouts_fit_the_deadline_of_the_service(self) -> None:
        assert int(directive("proxy_read_timeout").removesuffix("s")) > Settings().deadline_seconds
        assert directive("proxy_send_timeout") == directive("proxy_read_timeout")
        assert float(directive("client_body_timeout").removesuffix("s")) == Settings().deadline_seconds

    def test_nginx_closes_idle_connections_before_the_service(self) -> None:
        served = uvicorn.Config("app.main:app").timeout_keep_alive
        assert int(directive("keepalive_timeout").removesuffix("s")) < served

    @pytest.mark.parametrize("problem", [NotFound, PayloadTooLarge, Unavailable])
    def test_problem_documents_equal_those_of_the_service(self, problem: type[Problem]) -> None:
        returned = [json.loads(text) for text in re.findall(r"return \d+ '(.+)';", CONFIGURATION)]
        documents = [document for document in returned if document["code"] == problem.code]
        assert documents
        for document in documents:
            assert document["type"] == f"/problems/{problem.code}"
            assert (document["title"], document["status"]) == (problem.title, problem.status)
            assert document["error"] == document["detail"]


class TestCompose:
    def test_only_the_balancer_publishes_the_port(self) -> None:
        scaled = services("deploy/compose.scale.yml")
        assert scaled["api"]["ports"] == []
        assert scaled["balancer"]["ports"] == services("docker-compose.yml")["api"]["ports"]
        assert directive("listen") == "8000"
        assert set(re.findall(r"^ *server ([a-z]+:\d+) ", CONFIGURATION, re.MULTILINE)) == {"api:8000"}

    def test_the_balancer_mounts_the_configuration(self) -> None:
        assert services("deploy/compose.scale.yml")["balancer"]["volumes"] == [
            "./deploy/nginx.conf:/etc/nginx/nginx.conf:ro"
        ]

    def test_the_nginx_image_is_new_enough_for_the_directives(self) -> None:
        image, version = services("deploy/compose.scale.yml")["balancer"]["image"].split(":")
        assert image == "nginx"
        assert tuple(map(int, version.split("."))) >= (1, 28)  # `resolve` is new in 1.27.3

    def test_the_balancer_is_read_only_and_without_capabilities(self) -> None:
        balancer = services("deploy/compose.scale.yml")["balancer"]
        assert balancer["read_only"] is True
        assert balancer["cap_drop"] == ["ALL"]
        assert balancer["security_opt"] == ["no-new-privileges:true"]
        assert not balancer["user"].startswith(("0", "root"))


class TestNginx:
    def test_nginx_accepts_the_configuration(self, nginx_program: str, tmp_path: Path) -> None:
        path = tmp_path / "nginx.conf"
        path.write_text(configuration(free_port(), [free_port()], str(tmp_path)))
        command = [nginx_program, "-t", "-p", str(tmp_path), "-e", str(tmp_path / "err"), "-c", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "[warn]" not in done.stderr

    def test_nginx_fails_over_and_answers_with_problems(self, nginx_program: str, cat: bytes) -> None:
        port, dead = free_port(), free_port()
        with serve() as (process, instance):
            alive = instance.base_url.port
            assert alive is not None
            balanced = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
            with nginx(port, [dead, alive]) as folder, balanced as client:
                statuses = [client.post("/predict", content=cat).status_code for _ in range(6)]
                assert statuses == [200] * 6

                refused = client.get("/metrics")
                assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
                assert client.get("/metrics/report").is_success

                refused = client.post("/predict", content=bytes(Settings().max_request_bytes + 1))
                assert (refused.status_code, refused.json()["code"]) == (413, "payload_too_large")

                # nginx cannot buffer the body: a file has replaced the folder for bodies.
                shutil.rmtree(folder / "body")
                (folder / "body").write_text("")
                refused = client.post("/predict", content=bytes(200_000))
                assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
                assert refused.headers["Retry-After"] == "1" and "no room" in refused.json()["detail"]

                process.kill()
                process.wait()
                refused = client.post("/predict", content=cat)
                assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
                assert refused.headers["Retry-After"] == "1"
                assert refused.headers["Content-Type"] == "application/problem+json"
