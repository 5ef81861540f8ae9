"""deploy/monitoring: Prometheus accepts it, alerts fire when they should, and queries name metrics that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.api.metrics import Metrics
from tests.deploy.conftest import ROOT, services

MONITORING = ROOT / "deploy/monitoring"
ALERTS_TEST = Path(__file__).parent / "alerts_test.yml"
RULES = [rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((MONITORING / "classifier.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]] + [rule["expr"] for rule in RULES]
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
WORDS = {
    "sum",
    "max",
    "count",
    "by",
    "and",
    "or",
    "rate",
    "increase",
    "scalar",
    "vector",
    "absent",
    "histogram_quantile",
    "max_over_time",
}


METRICS = list(Metrics().registry._collector_to_names)  # without values, the exposition shows no labels


def exposed() -> dict[str, set[str]]:
    """The series that the service exposes, with their labels."""
    return {
        metric.describe()[0].name + suffix: set(metric._labelnames) | ({"le"} if suffix == "_bucket" else set())
        for metric in METRICS
        for suffix in SUFFIXES[metric._type]
    }


def named(expression: str) -> tuple[set[str], set[str]]:
    """The series and the labels in a query."""
    labels = re.findall(r'([a-z_]+)(?:=~|!~|!=|=)"', expression)
    labels += [label for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in re.split(r", *", group)]
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", " ", expression)
    return set(re.findall(r"\b[a-z_]+\b", bare)) - WORDS, set(labels)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_queries_name_only_exposed_metrics_and_labels(expression: str) -> None:
    known = exposed() | {"up": set()}
    series, labels = named(expression)
    assert series and series <= known.keys()
    assert labels <= {"instance", "job"}.union(*(known[one] for one in series))


def test_every_metric_is_in_the_dashboard() -> None:
    shown = set().union(*(named(target["expr"])[0] for panel in PANELS for target in panel["targets"]))
    for name in (metric.describe()[0].name for metric in METRICS):
        assert any(one.startswith(name) for one in shown), name


class TestDashboard:
    def test_panels_use_the_provisioned_data_source(self) -> None:
        (source,) = yaml.safe_load((MONITORING / "datasources.yml").read_text())["datasources"]
        used = [part["datasource"] for panel in PANELS for part in (panel, *panel["targets"])]
        assert used and all(one == {"type": source["type"], "uid": source["uid"]} for one in used)

    def test_the_interval_of_the_data_source_is_the_scrape_interval(self) -> None:
        (source,) = yaml.safe_load((MONITORING / "datasources.yml").read_text())["datasources"]
        prometheus = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]

    def test_panels_do_not_overlap(self) -> None:
        assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
        cells = [
            (x, y)
            for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(set(cells)) == len(cells)
        assert max(x for x, _ in cells) < 24

    def test_every_panel_has_a_title_and_queries(self) -> None:
        for panel in PANELS:
            assert panel["title"] and panel["targets"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


class TestPrometheus:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """The files as in the container, with the key beside the configuration."""
        shutil.copytree(MONITORING, tmp_path, dirs_exist_ok=True)
        (tmp_path / "metrics_key").write_text("none")
        return tmp_path

    def test_prometheus_accepts_the_configuration(self, promtool: str, folder: Path) -> None:
        done = subprocess.run(
            [promtool, "check", "config", "prometheus.yml"], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{len(RULES)} rules found" in done.stdout

    def test_alerts_fire_when_they_should(self, promtool: str) -> None:
        done = subprocess.run([promtool, "test", "rules", str(ALERTS_TEST)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize("alert", [rule["alert"] for rule in RULES])
    def test_every_alert_has_a_case_that_fires_and_one_that_does_not(self, alert: str) -> None:
        cases = [
            bool(case.get("exp_alerts"))
            for test in yaml.safe_load(ALERTS_TEST.read_text())["tests"]
            for case in test["alert_rule_test"]
            if case["alertname"] == alert
        ]
        assert set(cases) == {True, False}

    def test_prometheus_scrapes_the_instances_that_compose_starts(self) -> None:
        (job,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
        (discovery,) = job["dns_sd_configs"]
        (name,) = discovery["names"]
        assert discovery["port"] == services("docker-compose.yml")[name]["environment"]["PORT"]
        jobs = {found for expression in EXPRESSIONS for found in re.findall(r'job="([^"]+)"', expression)}
        assert jobs == {job["job_name"]}


class TestCompose:
    @pytest.fixture
    def monitoring(self) -> dict[str, Any]:
        return services("deploy/compose.monitoring.yml")

    def test_mounted_files_exist_and_are_read_only(self, monitoring: dict[str, Any]) -> None:
        mounted = [volume.split(":") for service in monitoring.values() for volume in service["volumes"]]
        ours = [(ROOT / source, mode) for source, _, *mode in mounted if source.startswith(".")]
        assert ours and all(path.is_file() and mode == ["ro"] for path, mode in ours)

    def test_the_dashboard_is_in_the_folder_that_grafana_reads(self, monitoring: dict[str, Any]) -> None:
        (provider,) = yaml.safe_load((MONITORING / "dashboards.yml").read_text())["providers"]
        targets = [volume.split(":")[1] for volume in monitoring["grafana"]["volumes"]]
        assert f"{provider['options']['path']}/classifier.json" in targets

    def test_ports_are_published_only_on_the_loopback_address(self, monitoring: dict[str, Any]) -> None:
        ports = [port for service in monitoring.values() for port in service["ports"]]
        assert len(ports) == 2 and all(port.startswith("127.0.0.1:") for port in ports)

    def test_containers_run_without_capabilities(self, monitoring: dict[str, Any]) -> None:
        for service in monitoring.values():
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
