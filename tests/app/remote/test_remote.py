"""Bundles that are fetched from a hub, from the web, from a bucket (memory:// stands for all) and from archives."""

import io
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from starlette.testclient import TestClient

from app.bundle.names import CHECKPOINT, GRAPH, MANIFEST
from app.bundle.reader import Bundle, BundleError
from app.main import create_app
from app.remote import fetch, local_folder, sources
from app.remote.address import Address
from app.settings import Settings
from tests.app.forged import forge, write
from tests.app.remote.conftest import forge_tiny
from tests.conftest import BUNDLE
from tests.hub import Hub

Refused = Callable[..., str]


def upload(memory: MemoryFileSystem, folder: Path, to: str = "/bucket/tiny") -> str:
    if memory.exists(to):
        memory.rm(to, recursive=True)
    for path in folder.iterdir():
        memory.pipe(f"{to}/{path.name}", path.read_bytes())
    return f"memory:/{to}"


def digest_of(folder: Path) -> str:
    return Bundle.load(folder).manifest.digest


@pytest.fixture
def refused(cache: Path) -> Refused:
    """A function that fetches from an address, and gives the error. Nothing may be left in the cache."""

    def line(address: str, *digests: str) -> str:
        with pytest.raises(BundleError) as error:
            local_folder(address, cache, digests)
        assert not cache.exists() or list(cache.iterdir()) == []
        assert "\n" not in str(error.value)
        return str(error.value)

    return line


@pytest.fixture(params=["memory", "zip", "tar", "web", "web zip", "hub", "hub commit", "hub folder"])
def place(
    request: pytest.FixtureRequest, tiny: Path, memory: MemoryFileSystem, web: SimpleNamespace, hub: Hub, tmp_path: Path
) -> str:
    """An address of the tiny bundle."""
    files = {path.name: path.read_bytes() for path in tiny.iterdir()}
    match request.param:
        case "memory":
            return upload(memory, tiny)
        case "zip":
            archive = shutil.make_archive(str(tmp_path / "tiny"), "zip", tiny)
            memory.pipe("/bucket/tiny.zip", Path(archive).read_bytes())
            return "memory://bucket/tiny.zip"
        case "tar":
            archive = shutil.make_archive(str(tmp_path / "tiny"), "tar", tmp_path, "tiny")  # in a folder of its own
            memory.pipe("/bucket/tiny.tar", Path(archive).read_bytes())
            return "memory://bucket/tiny.tar"
        case "web":
            shutil.copytree(tiny, web.folder / "a folder")
            return f"{web.url}/a%20folder/?key=secret"
        case "web zip":
            shutil.make_archive(str(web.folder / "tiny"), "zip", tiny)
            return f"{web.url}/tiny.zip?key=secret"
        case "hub":
            hub.commit("owner/tiny", files)
            return "hf://owner/tiny"
        case "hub commit":
            return f"hf://owner/tiny@{hub.commit('owner/tiny', files)}"
    hub.commit("owner/more", {f"models/tiny/{name}": content for name, content in files.items()})
    return "hf://owner/more@main/models/tiny"


def test_a_bundle_is_fetched_from_anywhere(place: str, tiny: Path, cache: Path) -> None:
    folder = local_folder(place, cache, [digest_of(tiny)])
    assert digest_of(folder) == digest_of(tiny)
    assert {path.name for path in folder.iterdir()} == {*Bundle.load(tiny).manifest.files, MANIFEST}
    assert list(cache.iterdir()) == [folder]


def test_a_folder_is_itself(tmp_path: Path, cache: Path) -> None:
    assert local_folder(tmp_path, cache) == tmp_path


def test_what_is_new_is_fetched_and_what_is_there_is_not_fetched_again(
    tiny: Path, web: SimpleNamespace, cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny, web.folder / "current")
    other = forge_tiny(tmp_path / "other", "2.0.0")
    digests = [digest_of(tiny), digest_of(other)]
    first = local_folder(f"{web.url}/current", cache, digests)
    assert f"GET /current/{GRAPH}" in web.requests
    web.requests.clear()
    assert local_folder(f"{web.url}/current", cache, digests) == first
    assert {one.split()[1] for one in web.requests} == {"/current/bundle.json"}
    shutil.rmtree(web.folder / "current")
    shutil.copytree(other, web.folder / "current")
    second = local_folder(f"{web.url}/current", cache, digests)
    assert [digest_of(folder) for folder in (first, second)] == digests


def test_a_commit_is_asked_for_once(tiny: Path, hub: Hub, cache: Path) -> None:
    commit = hub.commit("owner/once", {path.name: path.read_bytes() for path in tiny.iterdir()})
    first = local_folder(f"hf://owner/once@{commit}", cache)
    hub.requests.clear()
    del hub.repositories["owner/once"]
    assert local_folder(f"hf://owner/once@{commit}", cache) == first
    assert hub.requests == []
    with pytest.raises(BundleError, match="hf://owner/once@main: there is no such repository"):
        local_folder("hf://owner/once@main", cache)


def test_a_single_digest_pins_the_copy(tiny: Path, memory: MemoryFileSystem, cache: Path) -> None:
    address, digest = upload(memory, tiny), digest_of(tiny)
    folder = local_folder(address, cache)
    memory.rm("/bucket", recursive=True)
    assert local_folder(address, cache, [digest]) == folder
    with pytest.raises(BundleError, match=r"memory://bucket/tiny: there is no bundle\.json"):
        local_folder(address, cache, [digest, "0" * 64])


def test_a_damaged_copy_is_fetched_again(tiny: Path, memory: MemoryFileSystem, cache: Path) -> None:
    address = upload(memory, tiny)
    folder = local_folder(address, cache)
    write(folder / CHECKPOINT, b"damaged")
    assert digest_of(local_folder(address, cache)) == digest_of(tiny)


def test_what_is_missing_is_named(hub: Hub, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("owner/empty", {"notes.txt": b""})
    assert refused("hf://owner/empty") == "hf://owner/empty: there is no bundle.json"
    assert "there is no such repository" in refused("hf://owner/nothing")
    assert "the repository has no such revision" in refused("hf://owner/empty@v1")
    assert refused("memory://nothing.zip") == "memory://nothing.zip: there is no such file"
    assert refused("memory://nothing") == "memory://nothing: there is no bundle.json"
    assert "Protocol not known: nowhere" in refused("nowhere://bucket")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert "Install s3fs" in refused("s3://bucket/model")
    monkeypatch.delitem(sys.modules, "app.remote.fetch")
    monkeypatch.delitem(sys.modules, "app.remote.sources")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert "hf://owner/empty: an address needs the extra 'remote'" in refused("hf://owner/empty")


@pytest.mark.parametrize("address", ["hf://", "hf://owner", "hf://owner/", "hf://owner/name@", "hf://a@b/c"])
def test_an_address_at_the_hub_must_name_a_repository(refused: Refused, address: str) -> None:
    assert refused(address).endswith("is hf://OWNER/NAME or hf://OWNER/NAME@REVISION, and maybe a folder")


@pytest.mark.parametrize("address", ["https://", "s3://", "memory://", "gs:///"])
def test_an_address_must_name_a_place(refused: Refused, address: str) -> None:
    assert refused(address).endswith(": nothing follows the scheme: a place is missing")


def test_without_a_network_it_is_one_line_without_secrets(refused: Refused) -> None:
    line = refused("https://user:secret@127.0.0.1:9/model.zip?signature=secret")
    assert line.startswith("https://127.0.0.1:9/model.zip: ClientConnectorError: ") and "secret" not in line


def test_what_is_not_encrypted_must_be_pinned(web: SimpleNamespace, refused: Refused) -> None:
    assert "http:// is not encrypted, so MODEL_DIGEST must name the bundle" in refused(f"{web.url}/tiny")
    assert web.requests == []


def test_a_bundle_whose_digest_is_not_pinned_is_refused_before_its_files_are_fetched(
    tiny: Path, web: SimpleNamespace, refused: Refused
) -> None:
    shutil.copytree(tiny, web.folder / "tiny")
    assert f"MODEL_DIGEST does not name its digest, {digest_of(tiny)}" in refused(f"{web.url}/tiny", "0" * 64)
    assert not any(GRAPH in one for one in web.requests)


def test_a_damaged_file_is_refused(tiny: Path, memory: MemoryFileSystem, refused: Refused) -> None:
    address = upload(memory, tiny)
    memory.pipe(f"/bucket/tiny/{CHECKPOINT}", b"damaged")
    assert refused(address) == (
        f"memory://bucket/tiny: {CHECKPOINT} is damaged: its sha256 is not the one in bundle.json"
    )
    memory.rm(f"/bucket/tiny/{CHECKPOINT}")
    assert refused(address) == f"memory://bucket/tiny: there is no {CHECKPOINT}"
    memory.pipe(f"/bucket/tiny/{MANIFEST}", b"{}")
    assert refused(address).startswith("memory://bucket/tiny: bundle.json: schema_version is None")


def test_sizes_are_bounded(
    tiny: Path, memory: MemoryFileSystem, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = upload(memory, tiny)
    for name, value, message in (
        ("MAX_BYTES", 1000, "it is too large"),
        ("MAX_MANIFEST_BYTES", 1000, "it is too large"),
        ("MAX_FILES", 3, "it has 4 files, 3 are allowed"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(fetch, name, value)
            assert message in refused(address)
    memory.pipe("/large.zip", bytes(1001))
    monkeypatch.setattr(sources, "MAX_BYTES", 1000)
    assert "it is too large" in refused("memory://large.zip")


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/../../b", ".."])
def test_a_manifest_names_files_and_no_paths(tiny: Path, memory: MemoryFileSystem, refused: Refused, name: str) -> None:
    forge(tiny, files=Bundle.load(tiny).manifest.files | {name: "0" * 64})
    assert "is not a plain file name" in refused(upload(memory, tiny))


def zipped(*members: tuple[str, int]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, mode in members:
            one = zipfile.ZipInfo(name)
            one.external_attr = mode << 16
            archive.writestr(one, b"content")
    return content.getvalue()


def tarred(*members: tuple[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, kind in members:
            one = tarfile.TarInfo(name)
            one.type, one.linkname = kind, "/etc/passwd"
            archive.addfile(one)
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zip", b"no archive", "BadZipFile"),
        ("a.tar", b"no archive", "ReadError"),
        ("a.zip", zipped(("../bundle.json", 0o100644)), "leads out of its folder"),
        ("a.zip", zipped(("..\\bundle.json", 0o100644)), "leads out of its folder"),
        ("a.zip", zipped(("/bundle.json", 0o100644)), "leads out of its folder"),
        ("a.zip", zipped(("bundle.json", 0o120777)), "a link or a device"),
        ("a.zip", zipped(("notes.txt", 0)), "must hold one bundle.json, it holds 0"),
        ("a.zip", zipped(("a/bundle.json", 0), ("b/bundle.json", 0)), "must hold one bundle.json, it holds 2"),
        ("a.zip", zipped(("bundle.json", 0)), "bundle.json is damaged"),
        ("a.tar", tarred(("bundle.json", tarfile.REGTYPE), ("a/../../b", tarfile.REGTYPE)), "leads out of its folder"),
        ("a.tar", tarred(("bundle.json", tarfile.SYMTYPE)), "a link or a device"),
        ("a.tar", tarred(("bundle.json", tarfile.REGTYPE), ("model.onnx", tarfile.LNKTYPE)), "a link or a device"),
        ("a.tar", tarred(("x", tarfile.CHRTYPE)), "a link or a device"),
    ],
)
def test_archives_that_are_not_a_bundle_s_are_refused(
    memory: MemoryFileSystem, refused: Refused, name: str, content: bytes, message: str
) -> None:
    memory.pipe(f"/{name}", content)
    assert message in refused(f"memory://{name}")


def test_a_cache_that_cannot_be_written_is_one_line(tiny: Path, memory: MemoryFileSystem, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="memory://bucket/tiny: cannot write to MODEL_CACHE: Not a directory"):
        local_folder(upload(memory, tiny), tmp_path / "file" / "cache")


def test_an_address_is_shown_without_secrets() -> None:
    assert str(Address("s3://key:secret@bucket/model?version=1")) == "s3://bucket/model"
    assert str(Address("hf://owner/name@v1")) == "hf://owner/name@v1"
    assert str(Address("https://[::1")) == "https://[::1"


def test_a_service_serves_an_address_and_fetches_it_anew(
    memory: MemoryFileSystem, cache: Path, tmp_path: Path, cat: bytes
) -> None:
    address = upload(memory, BUNDLE, "/bucket/model")
    settings = Settings(model_dir=address, model_cache=cache, admin_keys="admin", inference_threads=1)
    with TestClient(create_app(settings, on_death=lambda: None)) as client:
        assert client.post("/predict", content=cat).status_code == 200
        newer = forge(tmp_path / "newer", version="9.9.9")
        memory.pipe(f"/bucket/model/{MANIFEST}", (newer / MANIFEST).read_bytes())
        load = "/v2/repository/models/cifar10/load"
        admin = {"Authorization": "Bearer admin"}
        assert client.post(load, headers=admin).json()["version"] == "9.9.9"
        assert client.post("/predict", content=cat).json()["model"]["version"] == "9.9.9"
        memory.rm("/bucket", recursive=True)
        failed = client.post(load, headers=admin)
        assert failed.status_code == 409 and failed.json()["detail"].startswith("there is no bundle.json; ")
        assert "bucket" not in json.dumps(client.post("/v2/repository/index", json={}).json())
        assert client.post("/predict", content=cat).status_code == 200
