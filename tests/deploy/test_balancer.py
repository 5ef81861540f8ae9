"""deploy/nginx.conf agrees with the service's settings, and nginx balances, refuses and fails over as documented."""

import io
import json
import re
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import uvicorn

from app.errors import DeadlineExceeded, NotFound, PayloadTooLarge, Problem, Unavailable
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

    @pytest.mark.parametrize("problem", [NotFound, PayloadTooLarge, Unavailable, DeadlineExceeded])
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


class Instance:
    """A fake instance behind nginx. `conduct` is how it answers. Counts complete POSTs by their body."""

    def __init__(self, conduct: str) -> None:
        self.conduct = conduct
        self.posts: Counter[bytes] = Counter()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept)

    def close(self) -> None:
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads.append(thread := threading.Thread(target=work, args=arguments))
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._start(self._serve, self._listener.accept()[0])

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream, suppress(OSError, ValueError):
            connection.settimeout(30)
            while not self._over.is_set() and self._answer(connection, stream):
                pass

    def _answer(self, connection: socket.socket, stream: io.BufferedReader) -> bool:
        """Whether the connection may be used again."""
        method, *_ = stream.readline().split() or [b""]
        headers = {}
        while line := stream.readline().strip().lower():
            name, _, value = line.partition(b": ")
            headers[name] = value
        body = stream.read(int(headers.get(b"content-length", 0)))
        if method == b"POST":
            self.posts[body] += 1
        if self.conduct == "breaks" or not method:
            return False
        if self.conduct == "is silent":
            self._over.wait(30)
            return False
        if self.conduct == "breaks in its answer":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n")
            return False
        status = self.conduct
        connection.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: {len(status)}\r\n\r\n{status}".encode())
        return True


@contextmanager
def behind(*conducts: str) -> Iterator[tuple[list[Instance], httpx.Client]]:
    """nginx in front of fake instances, with short timeouts. "refuses" is a port without a listener."""
    timeouts = {f"{name} 8s;": f"{name} 1s;" for name in ("proxy_read_timeout", "proxy_send_timeout")}
    with ExitStack() as stack:
        instances = [Instance(conduct) for conduct in conducts if conduct != "refuses"]
        for instance in instances:
            stack.callback(instance.close)
        dead = [free_port() for conduct in conducts if conduct == "refuses"]
        port = free_port()
        stack.enter_context(nginx(port, [*dead, *(instance.port for instance in instances)], timeouts))
        yield instances, stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))


BODIES = {"small": b"small", "in a file": bytes(200_000)}


class TestTries:
    """The number of instances on which nginx tries a POST."""

    @pytest.mark.parametrize("conduct", ["breaks", "breaks in its answer", "503"])
    @pytest.mark.parametrize("size", BODIES)
    def test_a_request_that_breaks_its_instance_is_tried_twice(
        self, nginx_program: str, conduct: str, size: str
    ) -> None:
        with behind(*[conduct] * 10) as (instances, client):
            for number in range(3):  # at the end nginx has marked all instances as failed
                body = BODIES[size] + b"%d" % number
                answer = client.post("/predict", content=body)
                assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
                assert answer.headers["Retry-After"] == "1"
                tried = [instance.posts[body] for instance in instances if instance.posts[body]]
                assert tried == [1, 1]

    @pytest.mark.parametrize("size", BODIES)
    def test_a_request_that_times_out_is_tried_once(self, nginx_program: str, size: str) -> None:
        with behind(*["is silent"] * 10) as (instances, client):
            answer = client.post("/predict", content=BODIES[size])
            assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
            assert sum(instance.posts.total() for instance in instances) == 1

    @pytest.mark.parametrize("first", ["breaks", "503"])
    def test_a_request_that_times_out_on_its_second_instance_is_not_tried_again(
        self, nginx_program: str, first: str
    ) -> None:
        with behind(first, "is silent") as ((broken, silent), client):
            for number in range(4):
                body = b"%d" % number
                answer = client.post("/predict", content=body)
                # After a silent instance nginx tries no other. While it avoids the silent one, it tries the broken one.
                expected = (504, 1) if silent.posts[body] else (503, 0)
                assert (answer.status_code, silent.posts[body]) == expected
                assert broken.posts[body] <= 3
            assert broken.posts and silent.posts

    @pytest.mark.parametrize("conduct", ["200", "413", "422", "429", "500"])
    def test_an_answer_is_passed_on_and_not_retried(self, nginx_program: str, conduct: str) -> None:
        with behind(conduct, conduct) as (instances, client):
            answer = client.post("/predict", content=b"body")
            assert (answer.status_code, answer.text) == (int(conduct), conduct)
            assert sum(instance.posts.total() for instance in instances) == 1

    def test_the_only_living_instance_of_ten_is_found(self, nginx_program: str) -> None:
        with behind(*["refuses"] * 9, "200") as ((instance,), client):
            for number in range(20):
                for body in (b"%d" % number, BODIES["in a file"] + b"%d" % number):
                    assert client.post("/predict", content=body).status_code == 200
                    assert instance.posts[body] == 1

    @pytest.mark.parametrize("conduct", ["breaks", "503"])
    def test_no_request_fails_while_one_instance_lives(self, nginx_program: str, conduct: str) -> None:
        with behind(*["refuses"] * 4, conduct, "200") as ((broken, alive), client):
            for number in range(20):
                body = b"%d" % number
                assert client.post("/predict", content=body).status_code == 200
                assert (broken.posts[body] <= 1, alive.posts[body]) == (True, 1)
            assert broken.posts

    def test_without_instances_the_answer_is_503(self, nginx_program: str) -> None:
        with behind(*["refuses"] * 10) as (_, client):
            answer = client.post("/predict", content=b"body")
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
