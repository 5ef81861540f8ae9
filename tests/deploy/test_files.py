"""The Dockerfile, docker-compose.yml, the lock file and the Makefile agree with each other and with the service."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LAST_STAGE = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
LOCK = (ROOT / "deploy/requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def service() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["api"]


def locked(requirement: str) -> list[str]:
    """The versions that the lock pins a project to: one, or one for each range of Python versions."""
    name = re.escape(canonicalize_name(requirement))
    return re.findall(rf"^{name}==([^ \n]+)", LOCK, re.MULTILINE)


class TestCompose:
    def test_the_container_is_read_only_and_without_capabilities(self, service: dict[str, Any]) -> None:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "network_mode", "cap_add", "volumes"} & service.keys()

    def test_memory_cores_processes_and_tmp_are_limited(self, service: dict[str, Any]) -> None:
        assert {"mem_limit", "cpus", "pids_limit", "restart"} <= service.keys()
        assert re.match(r"/tmp:size=\d+m,", service["tmpfs"][0])

    def test_the_stop_grace_period_is_longer_than_draining(self, service: dict[str, Any]) -> None:
        (seconds,) = re.fullmatch(r"\$\{STOP_GRACE_PERIOD:-(\d+)s\}", service["stop_grace_period"]).groups()
        assert int(seconds) > Settings().grace_seconds + Settings().drain_seconds

    def test_the_port_that_the_service_listens_on_is_published(self, service: dict[str, Any]) -> None:
        assert service["ports"] == [f"${{PORT:-8000}}:{service['environment']['PORT']}"]
        assert service["environment"]["HOST"] == "0.0.0.0"

    def test_exactly_the_existing_settings_are_passed_on(self, service: dict[str, Any]) -> None:
        settings = {name.upper() for name in Settings.model_fields}
        assert set(service["environment"]) == settings - {"UDS"}  # the container serves at its port

    def test_the_user_is_that_of_the_image(self, service: dict[str, Any]) -> None:
        assert f"USER {service['user']}\n" in LAST_STAGE


class TestDockerfile:
    def test_the_service_is_process_1(self) -> None:
        command = re.search(r"^CMD (.+)", LAST_STAGE, re.MULTILINE)
        assert command and json.loads(command[1]) == ["python", "-m", "app", "serve"]

    def test_the_user_is_a_number_and_not_root(self) -> None:
        users = re.findall(r"^USER (\d+):\d+$", LAST_STAGE, re.MULTILINE)
        assert users and int(users[-1]) > 0

    def test_the_lock_is_installed_with_hashes(self) -> None:
        assert re.search(r"--require-hashes -r \S+requirements\.lock", DOCKERFILE)

    def test_the_health_check_asks_for_readiness(self) -> None:
        health = LAST_STAGE[LAST_STAGE.index("HEALTHCHECK") :]
        assert "/readyz" in health

    @pytest.mark.parametrize("text", [LAST_STAGE, (ROOT / "Makefile").read_text()], ids=["Dockerfile", "Makefile"])
    def test_the_telemetry_of_onnx_runtime_is_off(self, text: str) -> None:
        assert re.search(r"^(?:ENV|    |export ).*\bORT_DISABLE_TELEMETRY *:?= *1", text, re.MULTILINE)

    def test_the_build_context_holds_exactly_the_copied_paths(self) -> None:
        ignored, *rules = [rule for rule in (ROOT / ".dockerignore").read_text().splitlines() if rule[:1] != "#"]
        allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
        copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(.+)", DOCKERFILE, re.MULTILINE)]
        assert ignored == "*"
        assert {path for paths in copied for path in paths} == allowed
        assert all((ROOT / path).exists() for path in allowed)


class TestLock:
    @pytest.mark.parametrize("dependency", PROJECT["dependencies"])
    def test_every_dependency_is_pinned_to_an_allowed_version(self, dependency: str) -> None:
        requirement = Requirement(dependency)
        versions = locked(requirement.name)
        assert versions and all(requirement.specifier.contains(version) for version in versions)

    def test_every_pin_has_a_hash(self) -> None:
        pins = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
        assert len(pins) > len(PROJECT["dependencies"])
        assert [pin for pin in pins if not re.search(r"--hash=sha256:[0-9a-f]{64}", pin)] == []

    def test_the_lock_names_no_index_url_or_path(self) -> None:
        assert not re.search(r"://|--(?:extra-)?index-url|--find-links|^[./]", LOCK, re.MULTILINE)

    def test_the_lock_holds_no_torch(self) -> None:
        assert not locked("torch")

    def test_the_pinned_torch_is_an_allowed_version(self) -> None:
        lines = (ROOT / "deploy/requirements-torch.txt").read_text()
        pinned = dict(re.findall(r"^([a-z]+)==(\S+)", lines, re.MULTILINE))
        allowed = {r.name: r.specifier for r in map(Requirement, PROJECT["optional-dependencies"]["torch"])}
        assert set(pinned) == {"torch", "torchvision"}
        assert all(allowed[name].contains(version) for name, version in pinned.items())

    @pytest.mark.parametrize(("extra", "in_the_lock"), [("grpc", ["protobuf"]), ("remote", [])])
    def test_the_image_s_extras_have_allowed_versions(self, extra: str, in_the_lock: list[str]) -> None:
        lines = (ROOT / f"deploy/requirements-{extra}.txt").read_text()
        pinned = dict(re.findall(r"^([a-z_-]+)==(\S+)", lines, re.MULTILINE))
        pinned |= {name: locked(name)[0] for name in in_the_lock}
        allowed = {r.name: r.specifier for r in map(Requirement, PROJECT["optional-dependencies"][extra])}
        assert set(pinned) == set(allowed)
        assert all(allowed[name].contains(version) for name, version in pinned.items())


class TestWorkflows:
    def test_every_python_from_the_oldest_that_is_allowed_on_runs_the_checks(self) -> None:
        job = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())["jobs"]["checks"]
        oldest = PROJECT["requires-python"].removeprefix(">=")
        assert job["strategy"]["matrix"]["python"][0] == oldest and len(job["strategy"]["matrix"]["python"]) == 4
        assert any(step.get("run", "").endswith(".ci/run") for step in job["steps"])

    @pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").iterdir()), ids=lambda path: path.name)
    def test_workflows_run_existing_commands_and_say_that_they_were_not_run(self, path: Path) -> None:
        text = path.read_text()
        assert set(re.findall(r"run: make ([a-z-]+)", text)) <= TestMakefile.TARGETS
        assert text.startswith("# Not run here")


class TestMakefile:
    TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    @pytest.mark.parametrize("path", ["README.md", ".ci/run"])
    def test_targets_that_documents_name_exist(self, path: str) -> None:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / path).read_text(), re.MULTILINE))
        assert named and named <= self.TARGETS

    def test_exactly_the_commands_are_phony_targets(self) -> None:
        phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert phony and set(phony[1].split()) == self.TARGETS
