"""One small cluster for all tests that need Ray."""

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
            ray.init(
                address="local",
                num_cpus=2,
                object_store_memory=100 * 1024 * 1024,
                include_dashboard=False,
                log_to_driver=False,
            )
        try:
            yield
        finally:
            serve.shutdown()
            ray.shutdown()
