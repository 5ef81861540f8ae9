import json

from starlette.testclient import TestClient

from tests.conftest import BUNDLE


def test_the_answer_is_the_manifest_without_its_self_check(client: TestClient) -> None:
    expected = json.loads((BUNDLE / "bundle.json").read_text())
    del expected["self_check"], expected["photograph_self_check"]
    expected["data_set"] = {"name": "cifar10", "title": "CIFAR-10", "one_kind": False}  # what a bundle need not say
    expected["quantisation"] = None  # likewise
    assert client.get("/model").json() == expected
