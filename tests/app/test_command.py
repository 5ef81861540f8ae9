"""`python -m app`, as an operator meets it."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

from app import __version__
from app.__main__ import cli
from app.local_files import SUFFIXES
from app.settings import Settings
from tests.app.conftest import Command
from tests.app.forged import forge, graph
from tests.app.server import run, serve
from tests.conftest import BUNDLE, DATA, ROOT

IMAGES = [path for path in DATA.iterdir() if path.suffix in SUFFIXES]


def test_both_engines_give_the_same_probabilities_and_stop_cleanly(cat: bytes, cat_label: str) -> None:
    answers = []
    for engine in ("onnx", "torch"):
        with serve(ENGINE=engine, VIEWS=3) as (process, client):
            assert client.get("/readyz").status_code == 200
            answers.append(client.post("/predict?top_k=10", files={"file": cat}).json()["predictions"])
            assert answers[-1][0]["label"] == cat_label
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    onnx, torch = ({item["label"]: item["probability"] for item in answer} for answer in answers)
    assert onnx == pytest.approx(torch, abs=1e-4)


def test_a_request_under_way_is_answered_before_the_end(cat: bytes) -> None:
    with serve() as (process, client):
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=30) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(cat)}\r\n\r\n"
            connection.sendall(head.encode() + cat[:100])
            # The server must have begun with this request before it is told to stop.
            while "predict_inflight_requests 2.0" not in client.get("/metrics").text:
                pass
            process.send_signal(signal.SIGTERM)
            connection.sendall(cat[100:])
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 200")
        assert process.wait(30) == 0


def test_a_body_that_comes_too_slowly_is_408(cat: bytes) -> None:
    with serve(DEADLINE_SECONDS=3) as (_, client):  # long enough for the good request on a busy machine
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(cat)}\r\n\r\n".encode())
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408")
        assert client.post("/predict", content=cat).status_code == 200


def test_a_client_that_disconnects_while_sending_is_only_logged(cat: bytes) -> None:
    with serve() as (process, client):
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
            connection.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(cat)}\r\n\r\n".encode())
        assert process.stderr is not None
        line = json.loads(next(line for line in process.stderr if '"app.access"' in line))
        assert line["outcome"] == "client_gone"
        assert client.post("/predict", content=cat).status_code == 200
        assert "predict_queue_images 0.0" in client.get("/metrics").text


def test_logs_are_json_lines(cat: bytes, cat_label: str) -> None:
    with serve() as (process, client):
        client.post("/predict", content=cat, headers={"X-Request-ID": "mine"})
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr]
    (access,) = (line for line in lines if line["logger"] == "app.access")
    assert (access["request_id"], access["status"], access["label"]) == ("mine", 200, cat_label)


def test_answers_and_logs_show_no_path_stack_or_image(cat: bytes) -> None:
    secret = "the-secret"
    picture, out = Image.open(io.BytesIO(cat)), io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = secret  # its description
    picture.save(out, "JPEG", exif=exif, comment=secret.encode())
    jpeg = out.getvalue()
    with serve(LOG_LEVEL="debug") as (process, client):
        answers = [
            client.post("/predict", content=jpeg),
            client.post("/predict", content=jpeg[:600]),
            client.post("/predict", content=secret.encode()),
            client.post("/predict", files={"file": (secret, jpeg)}),
            client.post("/explain", content=jpeg[:-100]),
            client.get(f"/nowhere/{secret}"),
            client.get("/assets/web/../../main.py"),
            client.get("/assets/web/none.py"),
            client.post("/v2/models/cifar10/infer", content=b'{"inputs": ' + secret.encode()),
            client.get("/model", headers={"Authorization": f"Bearer {secret}"}),
        ]
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        log = process.stderr.read()
    assert [answer.status_code for answer in answers] == [200, 422, 415, 200, 422, 404, 404, 404, 400, 200]
    assert all(json.loads(line) for line in log.splitlines())
    for text in (log, *(answer.text for answer in answers)):
        for hint in (secret, "Traceback", str(ROOT), "site-packages", ".py"):
            assert hint not in text.replace("none.py", "").replace("main.py", "")


def test_an_engine_that_dies_ends_the_process_with_an_error(tmp_path: Path) -> None:
    # A site folder whose only purpose is to break the session after the service has started.
    (tmp_path / "sitecustomize.py").write_text(
        "import app.inference.sessions as s\n"
        "check, calls = s.self_check, []\n"
        "def run(self, images, maps=False): raise RuntimeError('gone')\n"
        "def self_check(session, bundle):\n"
        "    check(session, bundle)\n"
        "    s.OnnxSession.run = run\n"
        "s.self_check = self_check\n"
    )
    with serve(PYTHONPATH=f"{tmp_path}:.") as (process, client):
        assert client.post("/predict", content=(BUNDLE / "reliability.png").read_bytes()).status_code == 503
        assert process.wait(30) == 1


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


@pytest.mark.parametrize("name", ["bundle.json", "model.onnx", "checkpoint.safetensors", "report.json", "README.md"])
def test_a_corrupt_bundle_stops_the_start_with_one_line(command: Command, tmp_path: Path, name: str) -> None:
    bundle = Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    done = command("serve", MODEL_DIR=bundle)
    assert done.returncode == 1
    assert name in one_line(done.stderr)


def test_a_wrong_setting_stops_the_start_with_one_line(command: Command) -> None:
    done = command(VIEWS="2", PORT="many")
    assert done.returncode == 1
    line = one_line(done.stderr)
    assert "VIEWS" in line
    assert "PORT" in line
    assert "1 or 3" in line


def test_a_missing_bundle_stops_the_start_with_one_line(command: Command) -> None:
    done = command(MODEL_DIR="nowhere")
    assert done.returncode == 1
    assert "nowhere" in one_line(done.stderr)


STARTS = {
    "a port that is taken": ({}, "Address already in use"),
    "a host that is none": ({"HOST": "no.such.host.invalid"}, "HOST, PORT: cannot serve at 'no.such.host.invalid'"),
    "an address of another machine": ({"HOST": "192.0.2.1"}, "Cannot assign requested address"),
    "too many threads": (
        {"INFERENCE_THREADS": 100_000},
        "INFERENCE_THREADS: Input should be less than or equal",
    ),
    "no key among commas": ({"API_KEYS": ","}, "API_KEYS: it names nothing"),
    "a misspelt name": ({"API_KEY": "secret"}, "'API_KEY' looks like the setting API_KEYS"),
    "a folder that is a file": ({"MODEL_DIR": "README.md", "PORT": 0}, "README.md/bundle.json: Not a directory"),
}


@pytest.mark.parametrize(("settings", "message"), STARTS.values(), ids=STARTS)
def test_every_error_at_the_start_is_one_line(command: Command, settings: dict[str, object], message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = command(**{"PORT": taken.getsockname()[1], **settings})
    assert (done.returncode, done.stdout) == (1, "")
    line = one_line(done.stderr)
    assert line.startswith("error: ") and message in line
    assert "secret" not in line


FORGED: dict[str, Callable[[Path], Path]] = {
    "a garbage graph": lambda folder: forge(folder, {"model.onnx": b"garbage"}),
    "values in another file": lambda folder: forge(folder, {"model.onnx": graph(values_elsewhere)}),
    "an unknown operator": lambda folder: forge(folder, {"model.onnx": graph(unknown_operator)}),
    "nine classes": lambda folder: forge(folder, classes=[f"class {number}" for number in range(9)]),
    "a deep report": lambda folder: forge(folder, {"report.json": b"[" * 100_000}),
    "a file's name of two lines": lambda folder: forge(folder, files={"one\ntwo": "0" * 64}),
}


def values_elsewhere(model: onnx.ModelProto) -> None:
    """As `onnx.save(..., save_as_external_data=True)` writes it; the file is in the working directory."""
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="README.md")


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[3].op_type = "Frobnicate"


@pytest.mark.parametrize("make", FORGED.values(), ids=FORGED)
def test_an_invalid_bundle_with_correct_hashes_stops_the_start_with_one_line(
    command: Command, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    done = command("serve", MODEL_DIR=make(tmp_path / "bundle"), PORT=0)
    assert (done.returncode, done.stdout) == (1, "")
    assert one_line(done.stderr).startswith("error: ")


def test_threads_that_cannot_be_started_stop_the_start_with_one_line(tmp_path: Path) -> None:
    # A site folder that limits threads as `ulimit -u` does, which does not hold for root.
    (tmp_path / "sitecustomize.py").write_text(
        "import threading\n"
        "start = threading.Thread.start\n"
        "def limited(thread):\n"
        '    if threading.active_count() > 3: raise RuntimeError("can\'t start new thread")\n'
        "    start(thread)\n"
        "threading.Thread.start = limited\n"
    )
    done = run("serve", PYTHONPATH=f"{tmp_path}:.", INFERENCE_THREADS=8, PORT=0, LOG_LEVEL="error")
    assert (done.returncode, done.stdout) == (1, "")
    assert "INFERENCE_THREADS: only " in one_line(done.stderr)


@pytest.mark.parametrize(("keys", "authentication"), [(None, "open"), ("secret", "API keys")])
def test_serve_logs_its_addresses_and_authentication_once_it_is_ready(keys: str | None, authentication: str) -> None:
    with serve(**({"API_KEYS": keys} if keys else {}), INFERENCE_THREADS=2) as (process, client):
        assert process.stderr is not None
        ready = next(line for line in map(json.loads, process.stderr) if line["message"] == "ready")
        version = client.get("/model", headers={"Authorization": f"Bearer {keys}"}).json()["version"]
        assert (ready["model"], ready["threads"], ready["authentication"]) == (version, 2, authentication)
        assert ready["addresses"] == [str(client.base_url).rstrip("/")]
        assert "secret" not in json.dumps(ready)


def test_a_host_with_several_addresses_is_served_at_each() -> None:
    with serve(HOST="localhost") as (process, _):
        assert process.stderr is not None
        ready = next(line for line in map(json.loads, process.stderr) if line["message"] == "ready")
        for address in ready["addresses"]:
            assert httpx.get(f"{address}/readyz", timeout=30).status_code == 200


def test_help_names_the_commands_and_completion(command: Command) -> None:
    done = command("--help")
    assert done.returncode == 0
    assert "serve" in done.stdout
    assert "classify" in done.stdout
    assert "--install-completion" in done.stdout


def test_the_help_of_serve_lists_the_settings_and_their_document() -> None:
    done = CliRunner().invoke(cli, ["serve", "--help"])
    assert done.exit_code == 0
    assert re.findall(r"^  ([A-Z]+[A-Z_]*) ", done.stdout, re.MULTILINE) == [
        name.upper() for name in Settings.model_fields
    ]
    assert "docs/operations.md" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_version_is_printed(command: Command) -> None:
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"cifar10-classifier {__version__}\n")


def test_options_override_the_settings(command: Command) -> None:
    done = command("serve", "--port", "0", "--host", "192.0.2.1", PORT="many", HOST="::1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot serve at '192.0.2.1', port 0" in one_line(done.stderr)
    done = command("classify", "--model", "nowhere", str(DATA), MODEL_DIR=BUNDLE)
    assert done.returncode == 1
    assert "nowhere" in one_line(done.stderr)
    done = command("serve", "--port", "70000")
    assert done.returncode == 1
    assert "PORT: Input should be less than or equal to 65535" in one_line(done.stderr)


def test_classify_prints_a_table(cat_label: str) -> None:
    done = run("classify", str(DATA / "cat.png"), str(DATA / "*.png"), "--top-k", "2")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 10
    assert lines[0].split()[:2] == [str(DATA / "cat.png"), cat_label]
    assert lines[0].count("%") == 2
    assert len({len(line) for line in lines}) == 1  # whether or not a line has a `?`


def test_classify_prints_json_lines(command: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    done = command("classify", str(DATA), str(tmp_path), "--json", "--top-k", "10")
    assert done.returncode == 1
    skipped, failed = done.stderr.splitlines()
    assert skipped.startswith("skipped ") and "openapi.json (no image)" in skipped
    assert failed == f"1 of {len(IMAGES) + 1} files failed"
    *good, bad = (json.loads(line) for line in done.stdout.splitlines())
    assert [len(line["predictions"]) for line in good] == [10] * len(IMAGES)
    assert all(line["prediction_set"]["labels"] and isinstance(line["abstain"], bool) for line in good)
    assert bad == {"path": str(tmp_path / "bad.png"), "error": bad["error"]}


def test_classify_reads_standard_input(cat: bytes, cat_label: str) -> None:
    command = [sys.executable, "-m", "app", "classify", "-", "--json"]
    done = subprocess.run(command, cwd=ROOT, input=cat, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    answer = json.loads(done.stdout)
    assert (answer["path"], answer["predictions"][0]["label"]) == ("-", cat_label)


@pytest.mark.parametrize("arguments", [["nowhere/*.png"], [str(DATA), "nowhere.png"], [str(DATA), "--top-k", "11"]])
def test_classify_refuses_invalid_options_with_one_line(command: Command, arguments: list[str]) -> None:
    done = command("classify", *arguments)
    assert done.returncode == 2
    assert one_line(done.stderr).startswith("error: ")
    assert done.stdout == ""


def test_classify_needs_a_path_and_an_intact_bundle(command: Command) -> None:
    assert command("classify").returncode == 2
    done = command("classify", str(DATA), MODEL_DIR="nowhere")
    assert done.returncode == 1
    assert "nowhere" in one_line(done.stderr)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many images that the first answers are written while the engine still computes."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(300):
        (folder / f"{number}.png").symlink_to(DATA / "cat.png")
    return folder


def in_shell(script: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """The script with `classify` as a command, and the paths as its arguments."""
    command = f'classify() {{ {shlex.quote(sys.executable)} -m app classify "$@"; }}; {script}'
    return subprocess.run(
        ["bash", "-c", command, "bash", *map(str, paths)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("option", ["--top-k 1", "--json"])
def test_classify_ends_quietly_on_a_broken_pipe(many: Path, option: str) -> None:
    done = in_shell(f'classify {option} "$1" | head -1; exit ${{PIPESTATUS[0]}}', many)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("arguments", ["--json", "--top-k 1", "--help"])
def test_classify_reports_a_full_disk(many: Path, arguments: str) -> None:
    for folder in (many, DATA / "cat.png"):
        done = in_shell(f'classify {arguments} "$1" > /dev/full', folder)
        assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


def test_classify_reports_a_closed_output() -> None:
    done = in_shell('classify "$1" >&-', DATA)
    assert (done.returncode, one_line(done.stderr)) == (1, "error: standard output: it is closed")


@pytest.mark.parametrize("stream", ["2> /dev/full", "2>&-", "2> >(true)"])
def test_classify_works_without_standard_error(tmp_path: Path, stream: str) -> None:
    (tmp_path / "bad.png").write_text("no image")
    done = in_shell(f'classify "$@" {stream}', DATA / "cat.png", tmp_path / "bad.png")
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 2)
    assert in_shell(f'classify "$@" {stream}', tmp_path / "nowhere").returncode == 2


def test_classify_writes_names_that_its_encoding_lacks(tmp_path: Path) -> None:
    (tmp_path / "Bär\n.png").symlink_to(DATA / "cat.png")
    done = run("classify", str(tmp_path), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert one_line(done.stdout).startswith(f"{tmp_path}/B\\xe4r\\n.png")


def test_classify_is_interrupted_without_a_stack_trace(many: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "classify", "--json", *map(str, many.iterdir()), "/dev/null"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    process.stdout.readline()  # the engine is at work
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (1, 128 + signal.SIGINT)
    assert "Traceback" not in said


def test_classify_shows_progress_only_on_a_terminal() -> None:
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "app", "classify", str(DATA)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=end, timeout=60)
    os.close(end)
    with open(terminal, "rb", buffering=0) as file:
        seen = file.read(4096)
    assert done.returncode == 0
    assert f"{len(IMAGES) - 1} of {len(IMAGES)} files".encode() in seen
    skipped = b"skipped 1 file: " + os.fsencode(DATA / "openapi.json") + b" (no image)\r\n"
    assert seen.endswith(b"files\r\x1b[K" + skipped)
    assert b"\x1b" not in done.stdout


def test_classify_ends_with_an_error_when_the_engine_dies(tmp_path: Path) -> None:
    # A site folder whose only purpose is to break the session after its self-check.
    (tmp_path / "sitecustomize.py").write_text(
        "import app.inference.sessions as s\n"
        "check = s.self_check\n"
        "def run(self, images, maps=False): raise RuntimeError('gone')\n"
        "def self_check(session, bundle):\n"
        "    check(session, bundle)\n"
        "    s.OnnxSession.run = run\n"
        "s.self_check = self_check\n"
    )
    done = run("classify", str(DATA), PYTHONPATH=f"{tmp_path}:.")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the engine")
    assert done.stdout == ""
