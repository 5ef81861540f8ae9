"""The collector's configuration, compose.tracing.yml and the service agree with each other. No collector runs."""

from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement

from app.telemetry import asked_for
from tests.deploy.test_files import DOCKERFILE, PROJECT, ROOT, locked

COLLECTOR = yaml.safe_load((ROOT / "deploy/tracing/collector.yml").read_text())


@pytest.fixture
def services() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy/compose.tracing.yml").read_text())["services"]


def test_the_service_is_asked_for_both_signals_and_sends_them_where_the_collector_listens(
    services: dict[str, Any],
) -> None:
    environment = services["api"]["environment"]
    assert set(asked_for(environment)) == set(COLLECTOR["service"]["pipelines"]) == {"traces", "metrics"}
    address = urlsplit(environment["OTEL_EXPORTER_OTLP_ENDPOINT"])
    assert address.hostname in services
    assert COLLECTOR["receivers"]["otlp"]["protocols"]["http"]["endpoint"] == f"0.0.0.0:{address.port}"


def test_pipelines_name_only_what_is_configured() -> None:
    for pipeline in COLLECTOR["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert names and set(names) <= set(COLLECTOR[kind])


def test_the_configuration_that_is_mounted_exists(services: dict[str, Any]) -> None:
    (mount,) = services["collector"]["volumes"]
    source, place, mode = mount.split(":")
    assert (ROOT / source).is_file() and mode == "ro"
    assert services["collector"]["command"] == [f"--config={place}"]


def test_the_images_extra_is_pinned_to_the_locked_version_of_the_interface(services: dict[str, Any]) -> None:
    assert f"{services['api']['build']['args']['EXTRAS']}|grpc|remote) pip" in DOCKERFILE
    lines = (ROOT / "deploy/requirements-otel.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line[0] != "#")
    allowed = {r.name: r.specifier for r in map(Requirement, PROJECT["optional-dependencies"]["otel"])}
    assert set(pinned) == set(allowed) and all(allowed[name].contains(version) for name, version in pinned.items())
    assert set(pinned.values()) == set(locked("opentelemetry-api"))
