"""Bundles that are published on a hub, and come back from there."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.bundle.names import MANIFEST
from app.bundle.reader import Bundle
from app.remote import local_folder
from tests.conftest import BUNDLE
from tests.hub import Hub, running_hub
from training.command_line import publish_command
from training.errors import TrainingError
from training.export.publish import publish


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # inside huggingface_hub 2.4
def test_what_is_published_can_be_served(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "bundle").symlink_to(BUNDLE)
    hub.commit("owner/model", {"LICENSE": b"theirs"})
    publish_command(source=run, repository="owner/model")
    said, variable = capsys.readouterr().out.splitlines()
    address = variable.removeprefix("MODEL_DIR=")
    held = hub.repositories["owner/model"][address.partition("@")[2]]
    manifest = Bundle.load(BUNDLE).manifest
    assert held.keys() == {*manifest.files, MANIFEST, "LICENSE"}
    assert said.startswith(f"{hub.url}/owner/model: ") and said.endswith(manifest.digest)
    assert Bundle.load(local_folder(address, tmp_path / "cache")).manifest == manifest


def test_what_goes_wrong_is_one_line(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(repository: str = "owner/model", source: Path = BUNDLE) -> str:
        with pytest.raises(TrainingError) as error:
            publish(source, repository, private=False)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "No such file" in line(source=tmp_path)
    assert line("a b/c").startswith("a b/c: Repo id must")
    hub.token = "another"
    monkeypatch.setenv("HF_TOKEN", "ours")
    assert "owner/model: the hub allows no writing there: set HF_TOKEN" in line()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "publish needs the extra 'remote'" in line()


@pytest.mark.parametrize("repository", ["model", "/model", "owner/", "owner/model/more", ""])
def test_a_repository_without_an_owner_and_a_name_is_refused_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, repository: str
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(TrainingError, match="names no repository: it must be an owner and a name"):
        publish(BUNDLE, repository, private=False)
