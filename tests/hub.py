"""A hub on this machine that speaks as much of the Hugging Face Hub's HTTP protocol as huggingface_hub 2 uses here.

That is: making a repository, checking a card, uploading by LFS and committing; a revision's commit, and files of it.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

LARGE = (".onnx", ".safetensors")  # go by LFS, as the Hub's .gitattributes say


class Hub:
    """`repositories`: by name, the commits by id, oldest first, each with its files. `requests`: what was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.token: str | None = None  # that writing needs
        self.url = ""

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        commits = self.repositories.setdefault(repository, {})
        files = {**(list(commits.values())[-1] if commits else {}), **files}
        content = repr([(name, hashlib.sha1(held).hexdigest()) for name, held in sorted(files.items())])
        oid = hashlib.sha1(f"{len(commits)}{content}".encode()).hexdigest()
        commits[oid] = files
        return oid

    def find(self, repository: str, revision: str) -> str | None:
        """The commit that a revision means."""
        commits = self.repositories[repository]
        return (list(commits) or [None])[-1] if revision == "main" else revision if revision in commits else None


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, content: object, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_any(self) -> None:
            body = self.chunks() if "Transfer-Encoding" in self.headers else self.rfile.read(self.length())
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            writes = self.command in ("POST", "PUT")
            if writes and hub.token and self.headers.get("Authorization", f"Bearer {hub.token}")[7:] != hub.token:
                return self.answer(401, {"error": "Invalid token"})
            for pattern, action in ACTIONS.items():
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    return action(self, body, *match.groups())
            self.answer(404, {"error": f"the hub of the tests does not know {self.command} {path}"})

        def length(self) -> int:
            return int(self.headers.get("Content-Length") or 0)

        def chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def log_message(self, *_: Any) -> None:
            pass

        def make(self, body: bytes) -> None:
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in hub.repositories:
                return self.answer(409, {"error": "it exists", "url": f"{hub.url}/{name}"})
            hub.repositories[name] = {}
            self.answer(200, {"url": f"{hub.url}/{name}"})

        def check_card(self, body: bytes) -> None:
            assert json.loads(body)["content"].startswith("---\n")
            self.answer(200, {"errors": [], "warnings": []})

        def modes(self, body: bytes, name: str) -> None:
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": one, "uploadMode": "lfs" if one.endswith(LARGE) else "regular"} for one in files]
            self.answer(200, {"files": [{**one, "shouldIgnore": False} for one in modes]})

        def batch(self, body: bytes, name: str) -> None:
            def upload(oid: str) -> dict[str, Any]:
                return {"upload": {"href": f"{hub.url}/lfs/{oid}"}}

            wanted = json.loads(body)["objects"]
            objects = [{**one, "actions": upload(one["oid"])} for one in wanted]
            self.answer(200, {"transfer": "basic", "objects": objects})

        def put(self, body: bytes, oid: str) -> None:
            assert hashlib.sha256(body).hexdigest() == oid
            hub.large[oid] = body
            self.answer(200, {})

        def commit(self, body: bytes, name: str) -> None:
            files = {}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
            oid = hub.commit(name, files)
            self.answer(200, {"commitUrl": f"{hub.url}/{name}/commit/{oid}", "commitOid": oid})

        def revision(self, _: bytes, name: str, revision: str | None = None) -> None:
            if name not in hub.repositories:
                return self.answer(401, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
            oid = hub.find(name, revision or "main")
            if oid is None:
                return self.answer(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
            self.answer(200, {"id": name, "modelId": name, "sha": oid, "siblings": []})

        def tree(self, _: bytes, name: str, revision: str, folder: str | None) -> None:
            files = hub.repositories[name][hub.find(name, revision) or ""]
            within = [path for path in files if path.rpartition("/")[0] == (folder or "")]
            self.answer(200, [{"type": "file", "path": path, "size": len(files[path]), "oid": ""} for path in within])

        def file(self, _: bytes, name: str, revision: str, path: str) -> None:
            files = hub.repositories[name][hub.find(name, revision) or ""]
            if path not in files:
                return self.answer(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
            self.answer(200, files[path])

    name = "([^/]+/[^/]+)"
    ACTIONS = {
        "POST /api/repos/create": Handler.make,
        "POST /api/validate-yaml": Handler.check_card,
        f"POST /api/models/{name}/preupload/main": Handler.modes,
        f"POST /{name}.git/info/lfs/objects/batch": Handler.batch,
        "PUT /lfs/([0-9a-f]{64})": Handler.put,
        f"POST /api/models/{name}/commit/main": Handler.commit,
        f"GET /api/models/{name}/revision/([^/]+)": Handler.revision,
        f"GET /api/models/{name}": Handler.revision,
        f"GET /api/models/{name}/tree/([^/]+)(?:/(.+))?": Handler.tree,
        f"GET /{name}/resolve/([^/]+)/(.+)": Handler.file,
    }
    return Handler


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub, which huggingface_hub asks while the block runs. Large files go by LFS, not by Xet's own protocol."""
    from huggingface_hub import constants

    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(hub)) as server, pytest.MonkeyPatch.context() as patch:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        patch.setattr(constants, "ENDPOINT", hub.url)  # as HF_ENDPOINT does before the import
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
