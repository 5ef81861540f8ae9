"""Models are replaced in a running server, and no request is lost; see tests/benchmarks/faults/swaps.py, too."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.app.server import run, serve
from tests.benchmarks.faults.swaps import ADMIN, BUNDLES, Link, swapped
from tests.conftest import BUNDLE, SMALL_BUNDLE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models") / "current"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[httpx.Client, int]]:
    Link(folder)
    ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the server would ignore it
    with serve(MODEL_DIR=folder, ADMIN_KEYS=ADMIN, INFERENCE_THREADS=2) as (process, client):
        assert process.stderr is not None
        log = threading.Thread(target=process.stderr.read)
        log.start()
        yield client, process.pid
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=30) == 0
        log.join()
    signal.signal(signal.SIGHUP, ignored)


async def test_none_of_120_requests_is_lost_while_a_model_is_swapped(
    server: tuple[httpx.Client, int], folder: Path
) -> None:
    outcome = await swapped(str(server[0].base_url), Link(folder), swaps=2, requests=120)
    assert outcome.lost == []
    assert outcome.answers >= 120
    assert set(outcome.versions) == set(BUNDLES)
    assert outcome.loads == 2


def test_sighup_loads_the_folder_anew(server: tuple[httpx.Client, int], folder: Path) -> None:
    client, pid = server
    version = Link(folder).turn()
    os.kill(pid, signal.SIGHUP)
    while client.get("/model").json()["version"] != version:
        time.sleep(0.02)


def test_tritonclient_loads_a_model(server: tuple[httpx.Client, int], folder: Path) -> None:
    client, _ = server
    version = Link(folder).turn()
    with triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}", network_timeout=30) as one:
        with pytest.raises(InferenceServerException, match="known key"):
            one.load_model("cifar10")
        one.load_model("cifar10", headers={"Authorization": f"Bearer {ADMIN}"})
        assert client.get("/model").json()["version"] == version
        assert "model_repository" in one.get_server_metadata()["extensions"]
        assert {entry["state"] for entry in one.get_model_repository_index()} == {"READY"}


def test_a_further_bundle_that_is_missing_stops_the_start_with_one_line() -> None:
    done = run("serve", MODEL_DIR=BUNDLE, MODEL_DIRS=f"small={SMALL_BUNDLE},other=/nowhere", PORT=0)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: cannot read /nowhere/bundle.json: ")
