"""One small cluster for all tests that need Ray."""

import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A site folder of the replicas: when the file `break` is there, the next inference is the engine's last.
BREAKABLE = """
import os, sys
if any(word.endswith("default_worker.py") for word in sys.orig_argv):  # Ray starts other programs, too
    import app.inference.sessions as sessions
    run, mark = sessions.OnnxSession.run, {mark!r}
    def breakable(self, images, maps=False):
        if os.path.exists(mark):
            os.remove(mark)
            raise RuntimeError("broken on purpose")
        return run(self, images, maps)
    sessions.OnnxSession.run = breakable
"""


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(BREAKABLE.format(mark=str(folder / "break")))
    return folder


def start(tries: int = 3) -> None:
    """Start the node. A try can fail by chance, as when a port that Ray found free is taken before it is used."""
    import ray

    while True:
        try:
            ray.init(
                address="local",
                num_cpus=2,
                object_store_memory=100 * 1024 * 1024,
                include_dashboard=False,
                log_to_driver=False,
            )
            return
        except Exception as error:
            end_half_started(error)
            tries -= 1
            if not tries:
                raise


def end_half_started(error: Exception) -> None:
    """End the programs that a start has left behind, which ray.shutdown does not know."""
    from ray._private.node import Node

    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
            return


@pytest.fixture(scope="package")
def nodes(site: Path) -> Iterator[None]:
    """A cluster of one node with two cores, on this machine, that only these tests know."""
    import ray
    from ray import serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # or it writes a token into the home folder
        with patch.context() as at_start:
            at_start.setenv("PYTHONPATH", f"{site}:{ROOT}")
            at_start.setenv(
                "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60"
            )  # on a busy machine a start takes longer than 5
            at_start.setenv("WEB_CONCURRENCY", "4")  # what some platforms set everywhere
            at_start.setenv("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")  # Ray tells its load at once
            start()
        try:
            yield
        finally:
            serve.shutdown()
            ray.shutdown()
