"""deploy/kubernetes is valid under the schemas of Kubernetes, and agrees with docker-compose.yml."""

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.api.paths import PROBES
from app.settings import Settings
from tests.deploy.conftest import ROOT, services

FOLDER = ROOT / "deploy/kubernetes"
API = services("docker-compose.yml")["api"]
VERSIONS = ["1.27", "1.30", "1.35"]  # the oldest that deployment.yaml names, and newer ones


def document(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


KUSTOMIZATION = document("kustomization.yaml")
MANIFESTS = {name: document(name) for name in KUSTOMIZATION["resources"]}
DEPLOYMENT = MANIFESTS["deployment.yaml"]["spec"]
INFERENCE_SERVICE = document("kserve.yaml")
# Fields that the predictor of an InferenceService has and a pod does not. check_kserve.py asks KServe's own models.
COMPONENT = {"minReplicas", "maxReplicas", "timeout"}
KSERVE_POD = {name: value for name, value in INFERENCE_SERVICE["spec"]["predictor"].items() if name not in COMPONENT}
PODS = [pytest.param(DEPLOYMENT["template"]["spec"], id="deployment"), pytest.param(KSERVE_POD, id="kserve")]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_valid_under_the_schemas(name: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pod_of_kserve_is_valid_under_the_schema(version: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "classifier"}, "spec": KSERVE_POD}
    kubernetes_validate.validate(pod, version, strict=True)


def test_the_schemas_refuse_an_unknown_field() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**MANIFESTS["service.yaml"], "specs": {}}, VERSIONS[0], strict=True)


def test_every_file_is_applied_or_marked_untested() -> None:
    files = {path.name for path in FOLDER.iterdir()} - {"kustomization.yaml"}
    apart = files - set(KUSTOMIZATION["resources"])
    assert set(KUSTOMIZATION["resources"]) <= files
    assert all((FOLDER / name).read_text().startswith("# UNTESTED") for name in apart)


class TestPod:
    @pytest.fixture(params=PODS)
    def pod(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return request.param

    @pytest.fixture
    def container(self, pod: dict[str, Any]) -> dict[str, Any]:
        (container,) = pod["containers"]
        return container

    def test_the_pod_meets_the_restricted_standard(self, pod: dict[str, Any], container: dict[str, Any]) -> None:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": API["read_only"],
            "capabilities": {"drop": API["cap_drop"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all("hostPath" not in volume for volume in pod["volumes"])

    def test_the_user_is_that_of_the_image(self, pod: dict[str, Any]) -> None:
        context = pod["securityContext"]
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == API["user"]
        assert f"\nUSER {API['user']}\n" in (ROOT / "Dockerfile").read_text()

    def test_the_writable_folder_is_that_of_compose(self, pod: dict[str, Any], container: dict[str, Any]) -> None:
        path, size = re.match(r"(/tmp):size=(\d+)m,", API["tmpfs"][0]).groups()  # type: ignore[union-attr]
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == [path]
        assert [volume["emptyDir"] for volume in pod["volumes"]] == [{"medium": "Memory", "sizeLimit": f"{size}Mi"}]

    def test_resource_limits_are_those_of_compose(self, container: dict[str, Any]) -> None:
        memory = re.search(r":-(\d+)m\}", API["mem_limit"])[1]  # type: ignore[index]
        cores = re.search(r":-(\d+)\}", API["cpus"])[1]  # type: ignore[index]
        assert container["resources"]["limits"] == {"cpu": cores, "memory": f"{memory}Mi"}
        assert container["resources"]["requests"] == container["resources"]["limits"]

    def test_the_port_is_that_of_the_image(self, container: dict[str, Any]) -> None:
        (port,) = container["ports"]
        assert port["containerPort"] == API["environment"]["PORT"]

    def test_the_environment_sets_only_existing_settings(self, container: dict[str, Any]) -> None:
        names = {variable["name"] for variable in container["env"]}
        assert names and names <= {name.upper() for name in Settings.model_fields}
        values = {one["name"].lower(): one["value"] for one in container["env"] if "value" in one}
        Settings(**values)  # type: ignore[arg-type]

    def test_the_grace_period_is_longer_than_draining(self, pod: dict[str, Any], container: dict[str, Any]) -> None:
        seconds = {one["name"]: float(one["value"]) for one in container["env"] if one["name"].endswith("SECONDS")}
        assert "preStop" not in container.get("lifecycle", {})  # its time would count, too
        assert pod["terminationGracePeriodSeconds"] > seconds["GRACE_SECONDS"] + seconds["DRAIN_SECONDS"]

    def test_probes_use_paths_without_authentication(self, container: dict[str, Any]) -> None:
        probes = {name: probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")}
        assert {"readinessProbe", "livenessProbe"} <= probes.keys() and set(probes.values()) <= PROBES
        assert "ready" in probes["readinessProbe"] and "live" in probes["livenessProbe"]

    def test_the_readiness_probe_fails_before_the_service_stops_answering(self) -> None:
        (container,) = DEPLOYMENT["template"]["spec"]["containers"]
        probe = container["readinessProbe"]
        grace = next(float(one["value"]) for one in container["env"] if one["name"] == "GRACE_SECONDS")
        assert probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"] < grace

    def test_the_image_is_the_one_that_compose_builds(self, container: dict[str, Any]) -> None:
        assert API["image"] == f"${{IMAGE:-{container['image']}}}"
        assert [image["name"] for image in KUSTOMIZATION["images"]] == [container["image"]]


class TestTogether:
    LABELS = DEPLOYMENT["selector"]["matchLabels"]

    def test_all_selectors_match_the_pods_of_the_deployment(self) -> None:
        assert DEPLOYMENT["template"]["metadata"]["labels"].items() >= self.LABELS.items()
        assert MANIFESTS["service.yaml"]["spec"]["selector"] == self.LABELS
        assert MANIFESTS["disruption.yaml"]["spec"]["selector"]["matchLabels"] == self.LABELS
        assert MANIFESTS["network.yaml"]["spec"]["podSelector"]["matchLabels"] == self.LABELS

    def test_only_the_autoscaler_sets_the_number_of_replicas(self) -> None:
        target = MANIFESTS["autoscaler.yaml"]["spec"]["scaleTargetRef"]
        deployment = MANIFESTS["deployment.yaml"]
        assert target == {
            "apiVersion": deployment["apiVersion"],
            "kind": deployment["kind"],
            "name": deployment["metadata"]["name"],
        }
        assert "replicas" not in DEPLOYMENT

    def test_a_disruption_leaves_at_least_one_instance(self) -> None:
        unavailable = MANIFESTS["disruption.yaml"]["spec"]["maxUnavailable"]
        assert MANIFESTS["autoscaler.yaml"]["spec"]["minReplicas"] > unavailable

    def test_the_network_policy_allows_the_target_port_of_the_service(self) -> None:
        (container,) = DEPLOYMENT["template"]["spec"]["containers"]
        (port,) = container["ports"]
        (rule,) = MANIFESTS["network.yaml"]["spec"]["ingress"]
        assert rule["ports"] == [{"protocol": "TCP", "port": port["containerPort"]}]
        assert MANIFESTS["service.yaml"]["spec"]["ports"][0]["targetPort"] == port["name"]
        assert MANIFESTS["network.yaml"]["spec"]["egress"] == []

    def test_annotations_give_prometheus_the_port_and_path(self) -> None:
        annotations = DEPLOYMENT["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/port"] == str(API["environment"]["PORT"])
        assert annotations["prometheus.io/path"] == "/metrics"
