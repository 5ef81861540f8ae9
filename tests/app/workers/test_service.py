"""One started service with two workers: what its clients and operators see."""

import io
import json
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.app.conftest import Command
from tests.app.server import serve
from tests.benchmarks.faults.swaps import ADMIN, Link
from tests.benchmarks.serving.processes import children, decodes, workers

BODIES = 1 << 20  # bytes of all bodies


class Service:
    def __init__(self, pid: int, client: httpx.Client, folder: Path) -> None:
        self.pid = pid
        self.client = client
        self.address = client.base_url.host, client.base_url.port
        self.folder = folder
        self.log: list[dict] = []

    def read(self, stderr: object) -> None:
        for line in stderr:  # type: ignore[attr-defined]
            self.log.append(json.loads(line))

    def workers(self) -> set[int]:
        """Their process ids."""
        return set(workers(self.pid))

    def decoders(self) -> set[int]:
        """The process ids of the decoding processes that the workers have together."""
        return {pid for pid in children(self.pid) if decodes(pid)}

    def connection(self) -> httpx.Client:
        return httpx.Client(base_url=self.client.base_url, timeout=30)

    def begin_upload(self, length: int) -> tuple[socket.socket, bytes]:
        """A connection on which an upload is announced, and what is answered to that."""
        connection = socket.create_connection(self.address)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        return connection, connection.recv(1000)[:12]

    def uploads(self, length: int) -> Iterator[tuple[socket.socket, bytes]]:
        """Announce an upload to each worker, on a connection each."""
        found: dict[int, tuple[socket.socket, bytes]] = {}
        more = []  # kept until both are found: a worker with fewer connections gets the next
        while len(found) < 2:
            connection, answer = self.begin_upload(length)
            pid = self.worker_of(connection)
            if pid is None or pid in found:
                more.append(connection)
            else:
                found[pid] = connection, answer
        for connection in more:
            connection.close()
        return iter(found.values())

    def worker_of(self, connection: socket.socket) -> int | None:
        """The process that has the other end."""
        ours = f":{connection.getsockname()[1]:04X}"
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ends = {f"socket:[{line[9]}]" for line in lines if line[2].endswith(ours)}
        return next((pid for pid in self.workers() if ends & set(descriptors(pid))), None)

    def is_closed(self) -> bool:
        """Whether nobody listens any more."""
        with socket.socket() as probe:
            return probe.connect_ex(self.address) != 0

    def counter(self, name: str, client: httpx.Client | None = None) -> float:
        """The sum of a metric over all its labels, from a new connection by default."""
        if client is None:
            with self.connection() as client:
                return self.counter(name, client)
        text = client.get("/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))


def descriptors(pid: int) -> Iterator[str]:
    """What a process has open."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # it was closed meanwhile
            yield os.readlink(f"/proc/{pid}/fd/{name}")


def runs(pid: int) -> bool:
    """Whether it has not ended; a zombie has."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture(scope="module")
def photo() -> bytes:
    """Neither minute nor tiny: a process decodes it."""
    out = io.BytesIO()
    Image.effect_noise((300, 200), 50).convert("RGB").save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("workers")
    Link(folder / "current")
    settings = {
        "WORKERS": 2,
        "MODEL_DIR": folder / "current",
        "ADMIN_KEYS": ADMIN,
        "MAX_INFLIGHT_BODY_BYTES": BODIES,
        "MIN_BODY_BYTES_PER_SECOND": 1,
        "DRIFT_WINDOW_IMAGES": 4,
        "FEEDBACK_DIR": folder / "feedback",
        "DEADLINE_SECONDS": 600,
        "LOG_FORMAT": "json",
    }
    with serve(**settings) as (process, client):
        made = Service(process.pid, client, folder)
        log = threading.Thread(target=made.read, args=[process.stderr])
        log.start()
        while client.get("/readyz").status_code != 200:
            time.sleep(0.02)
        yield made
        process.terminate()
        assert process.wait(timeout=30) == 0
        log.join()


def test_both_workers_answer_on_one_port(service: Service, cat: bytes) -> None:
    for connection, answer in service.uploads(len(cat)):
        assert answer == b"HTTP/1.1 100"
        connection.sendall(cat)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.close()


def test_metrics_of_both_are_summed_and_alike_in_every_scrape(service: Service, cat: bytes) -> None:
    before = service.counter("predictions_total")
    clients = [service.connection() for _ in range(4)]
    for client in clients:
        assert client.post("/predict", content=cat).status_code == 200
    assert {service.counter("predictions_total", client) for client in clients} == {before + 4}
    assert service.counter("prediction_confidence_count", clients[0]) == service.counter("predictions_total")
    assert service.counter("predict_inflight_requests", clients[0]) == 1  # the scrape itself
    drifts = [service.counter("prediction_drift", client) for client in clients]
    assert len(set(drifts)) == 1 and drifts[0] == drifts[0]  # four answers fill the window; none is NaN
    statistics = [client.get("/v2/models/cifar10/stats").json()["model_stats"][0] for client in clients]
    assert {found["inference_count"] for found in statistics} == {0}
    for client in clients:
        client.close()


def test_the_true_label_of_an_answer_is_taken_once_wherever_it_arrives(service: Service, cat: bytes) -> None:
    with service.connection() as one, service.connection() as other:
        codes = []
        for index, client in enumerate((one, other)):
            client.post("/predict", content=cat, headers={"X-Request-ID": f"answer-{index}"}).raise_for_status()
        told = {"label": "cat"}
        for index, client in enumerate((other, one)):
            codes.append(client.post("/feedback", json={"request_id": f"answer-{index}", **told}).status_code)
            codes.append(client.post("/feedback", json={"request_id": f"answer-{index}", **told}).status_code)
        refused = other.post("/feedback", json={"request_id": "answer-0", "label": "cat"})
    assert codes == [200, 404, 200, 404]
    assert "is unknown" in refused.json()["detail"]


def test_the_memory_for_bodies_is_of_the_service(service: Service) -> None:
    """Two bodies that do not arrive in full, one in each worker, leave no room for a third in either."""
    size = BODIES // 2

    def statuses() -> set[bytes]:
        """What is said to eight announcements of a third body, which workers with fewer connections take.

        Which one said what cannot be told: it closes a connection that it refuses.
        """
        asked = [service.begin_upload(size // 2) for _ in range(8)]
        for connection, _ in asked:
            connection.close()
        return {answer for _, answer in asked}

    held = list(service.uploads(size))
    for connection, _ in held:
        connection.sendall(bytes(size - 1000))
    while statuses() != {b"HTTP/1.1 429"}:
        pass
    for connection, _ in held:
        connection.close()
    while statuses() != {b"HTTP/1.1 100"}:
        pass


def test_a_killed_worker_is_replaced_while_the_other_answers(service: Service, cat: bytes) -> None:
    total = service.counter("predict_requests_total")
    before = service.workers()
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    codes = []
    while len(service.workers() - {victim}) < 2 or victim in service.workers():
        with service.connection() as client:
            codes += [client.get("/readyz").status_code, client.post("/predict", content=cat).status_code]
    assert time.monotonic() - killed < 20  # two seconds is the goal; a busy machine may take longer
    assert set(codes) <= {200}
    assert before - service.workers() == {victim}
    assert service.counter("predict_requests_total") >= total + len(codes) / 2
    while not any(line["message"] == "a worker was replaced" for line in service.log):
        time.sleep(0.01)
    assert sum(line["message"] == "ready" for line in service.log) == 1


def test_both_decode_in_the_same_processes(service: Service, photo: bytes) -> None:
    """And a killed worker takes with it only what it had borrowed."""
    for connection, _ in service.uploads(len(photo)):
        connection.sendall(photo)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.close()
    (decoder,) = service.decoders()  # one after the other
    os.kill(decoder, signal.SIGSTOP)
    held = {service.worker_of(connection): connection for connection, _ in service.uploads(len(photo))}
    for connection in held.values():
        connection.sendall(photo)
    while len(service.decoders()) < 2:  # another one has started, for the second photo
        time.sleep(0.01)
    (answered,), _, _ = select.select(held.values(), [], [], 60)  # the other's process is stopped
    assert answered.recv(1000).startswith(b"HTTP/1.1 200")
    (waiting,) = (pid for pid, connection in held.items() if connection is not answered)
    assert waiting is not None
    os.kill(waiting, signal.SIGKILL)
    while decoder in service.decoders() or len(service.workers()) < 2:
        time.sleep(0.01)
    with service.connection() as client:
        assert client.post("/predict", content=photo).status_code == 200
    for connection in held.values():
        connection.close()


def test_a_decoding_process_that_is_killed_is_counted_in_all_scrapes(service: Service, photo: bytes) -> None:
    before = service.counter("predict_decoders_killed_total")
    with service.connection() as client:
        assert client.post("/predict", content=photo).status_code == 200
        for pid in service.decoders():
            os.kill(pid, signal.SIGKILL)
        while service.counter("predict_decoders_killed_total") == before:
            time.sleep(0.01)
        assert client.post("/predict", content=photo).status_code == 200


def test_a_model_is_swapped_in_both_workers(service: Service) -> None:
    clients = [service.connection() for _ in range(4)]
    link = Link(service.folder / "current")
    version = link.turn()
    loaded = service.client.post(
        "/v2/repository/models/cifar10/load", headers={"Authorization": f"Bearer {ADMIN}"}, timeout=30
    )
    assert loaded.json().get("version") == version, loaded.text
    assert {client.get("/model").json()["version"] for client in clients} == {version}
    (service.folder / "current").unlink()
    refused = service.client.post("/v2/repository/models/cifar10/load", headers={"Authorization": f"Bearer {ADMIN}"})
    assert (refused.status_code, refused.json()["code"]) == (409, "load_failed")
    assert {client.get("/model").json()["version"] for client in clients} == {version}
    reasons = {client.post("/v2/repository/index").json()[0]["reason"] for client in clients}
    assert reasons == {refused.json()["detail"]}
    os.kill(max(service.workers()), signal.SIGKILL)  # the next one begins with the model that answers
    for client in clients:
        client.close()
    while len(service.workers()) < 2:
        time.sleep(0.01)
    with service.connection() as one, service.connection() as other:
        assert {one.get("/model").json()["version"], other.get("/model").json()["version"]} == {version}


def test_sigterm_ends_both_after_their_answers(service: Service, cat: bytes) -> None:
    """The last test of the service: it ends it."""
    held = list(service.uploads(len(cat)))
    os.kill(service.pid, signal.SIGTERM)
    while not service.is_closed():
        time.sleep(0.01)
    for connection, _ in held:
        connection.sendall(cat)
        answer = connection.recv(1000)
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer.lower()
        connection.close()


def test_decoding_processes_end_with_a_supervisor_that_is_killed(photo: bytes) -> None:
    with serve(WORKERS=2) as (process, client):
        assert client.post("/predict", content=photo).status_code == 200
        found = children(process.pid)
        assert any(map(decodes, found))
        process.kill()
        process.wait(timeout=30)
        while any(map(runs, found)):
            time.sleep(0.01)


def test_a_bundle_that_is_missing_stops_the_start_with_one_line(command: Command) -> None:
    done = command("serve", WORKERS=2, MODEL_DIR="/nowhere", PORT=0)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: cannot read /nowhere/bundle.json: ")
