"""deploy/nginx.conf: that it agrees with the service's settings, and does what it promises."""

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
    """The value of the only one of this name."""
    (value,) = re.findall(rf"^ *{name} (.+?);", CONFIGURATION, re.MULTILINE)
    return value


class TestAgreesWithTheService:
    def test_lets_through_what_the_service_accepts(self) -> None:
        assert int(directive("client_max_body_size").removesuffix("m")) * 2**20 == Settings().max_request_bytes

    def test_waits_longer_than_the_service_takes(self) -> None:
        assert int(directive("proxy_read_timeout").removesuffix("s")) > Settings().deadline_seconds
        assert directive("proxy_send_timeout") == directive("proxy_read_timeout")
        assert float(directive("client_body_timeout").removesuffix("s")) == Settings().deadline_seconds

    def test_gives_connections_up_first(self) -> None:
        served = uvicorn.Config("app.main:app").timeout_keep_alive
        assert int(directive("keepalive_timeout").removesuffix("s")) < served

    @pytest.mark.parametrize("problem", [NotFound, PayloadTooLarge, Unavailable])
    def test_speaks_as_the_service_does(self, problem: type[Problem]) -> None:
        documents = [json.loads(text) for text in re.findall(r"return \d+ '(.+)';", CONFIGURATION)]
        said = [one for one in documents if one["code"] == problem.code]
        assert said
        for document in said:
            assert document["type"] == f"/problems/{problem.code}"
            assert (document["title"], document["status"]) == (problem.title, problem.status)
            assert document["error"] == document["detail"]


class TestCompose:
    def test_takes_the_instances_port(self) -> None:
        scaled = services("deploy/compose.scale.yml")
        assert scaled["api"]["ports"] == []
        assert scaled["balancer"]["ports"] == services("docker-compose.yml")["api"]["ports"]
        assert directive("listen") == "8000"
        assert set(re.findall(r"^ *server ([a-z]+:\d+) ", CONFIGURATION, re.MULTILINE)) == {"api:8000"}

    def test_mounts_that_configuration(self) -> None:
        assert services("deploy/compose.scale.yml")["balancer"]["volumes"] == [
            "./deploy/nginx.conf:/etc/nginx/nginx.conf:ro"
        ]

    def test_nginx_knows_its_directives(self) -> None:
        image, version = services("deploy/compose.scale.yml")["balancer"]["image"].split(":")
        assert image == "nginx"
        assert tuple(map(int, version.split("."))) >= (1, 28)  # `resolve` is of 1.27.3

    def test_is_confined(self) -> None:
        balancer = services("deploy/compose.scale.yml")["balancer"]
        assert balancer["read_only"] is True
        assert balancer["cap_drop"] == ["ALL"]
        assert balancer["security_opt"] == ["no-new-privileges:true"]
        assert not balancer["user"].startswith(("0", "root"))


class TestNginx:
    def test_accepts_it(self, nginx_program: str, tmp_path: Path) -> None:
        path = tmp_path / "nginx.conf"
        path.write_text(configuration(free_port(), [free_port()], str(tmp_path)))
        command = [nginx_program, "-t", "-p", str(tmp_path), "-e", str(tmp_path / "err"), "-c", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "[warn]" not in done.stderr

    def test_finds_the_instance_that_lives(self, nginx_program: str, cat: bytes) -> None:
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

                # A body that finds no room: its folder is none any more.
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
