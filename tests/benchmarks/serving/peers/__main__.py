"""Benchmark this service against its peers, with the same model and images on the same machine.

    python -m tests.benchmarks.serving.peers prepare --venvs ../venvs
    python -m tests.benchmarks.serving.peers run --venvs ../venvs --output build/peers.csv
    python -m tests.benchmarks.serving.peers report --output build/peers.csv

Every round starts each peer, compares its answers with those of the ONNX graph, and measures it. The order rotates. The
CSV file grows with each peer, and `run --resume` continues it. The tables (.md) and the output of the servers (.log)
are in files beside it. Needs Linux and wrk (Debian: apt-get install wrk).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import httpx

from app.cores import available_cores
from tests.benchmarks.serving.peers import report
from tests.benchmarks.serving.peers.catalogue import PEERS, ROOT, Peer
from tests.benchmarks.serving.peers.load import EXAMPLES, IMAGES, wrk
from tests.benchmarks.serving.peers.processes import running, wait_until_idle
from tests.benchmarks.serving.peers.results import BARE, Measurement, Results
from tests.benchmarks.serving.peers.work import Graph, answer, decode

START_SECONDS = 90
STARTUP_ESTIMATE = 10  # mean seconds to start, check, wait for and stop a peer
WARM_UP_SECONDS = 2
BARE_SECONDS = 2
PROBABILITY_TOLERANCE = 1e-3  # PyTorch and ONNX Runtime differ in the last digits


class PeerError(Exception):
    """A peer does not start, or its answers differ from those of the model."""


def prepare(peers: list[Peer], venvs: Path) -> None:
    for peer in peers:
        venv = venvs / (peer.venv or peer.name)
        python = venv / "bin/python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        print(f"{peer.name}: {peer.requirements.relative_to(ROOT)}", flush=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", peer.requirements], check=True)


def wait_until_ready(peer: Peer, process: subprocess.Popen[bytes], url: str) -> None:
    body = peer.body(EXAMPLES["cat"], "png")
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise PeerError(f"it ended with status {process.returncode}")
        try:
            if httpx.post(url, content=body.content, headers={"Content-Type": body.content_type}).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise PeerError(f"it does not answer after {START_SECONDS} s")


def check(peer: Peer, url: str, graph: Graph) -> None:
    """Compare the peer's answers to all images with those of the graph. Raises PeerError if they differ."""
    with httpx.Client(timeout=30) as client:
        for label, image in EXAMPLES.items():
            body = peer.body(image, "png")
            response = client.post(url, content=body.content, headers={"Content-Type": body.content_type})
            if not response.is_success:
                raise PeerError(f"{label}: status {response.status_code}, {response.text[:200]}")
            found = peer.predictions(response.json())
            expected = answer(graph.logits(decode(image)))["predictions"]
            difference = abs(found[0]["probability"] - expected[0]["probability"])
            if len(found) != 5 or found[0]["label"] != expected[0]["label"] or difference > PROBABILITY_TOLERANCE:
                raise PeerError(f"{label}: it answers {found}, the graph {expected}")


def measure(options: argparse.Namespace, peer: Peer, round_number: int, graph: Graph) -> Iterator[Measurement]:
    with (
        options.output.with_suffix(".log").open("ab") as log,
        running(peer, options.venvs, log) as (process, url),
    ):
        wait_until_ready(peer, process, url)
        check(peer, url, graph)
        for image in options.images:
            body = peer.body(IMAGES[image], image)
            wrk(url, body, 8, WARM_UP_SECONDS)
            for connections in options.concurrency:
                wait_until_idle(process.pid)
                cell = wrk(url, body, connections, options.seconds)
                yield Measurement(round_number, peer.name, image, connections, options.seconds, **asdict(cell))


def measure_bare(venvs: Path, round_number: int) -> Iterator[Measurement]:
    for threads in sorted({1, available_cores()}):
        command = [str((venvs / "service/bin/python").absolute()), "-m", "tests.benchmarks.serving.peers.bare"]
        done = subprocess.run(
            [*command, str(threads), str(BARE_SECONDS)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout)
        yield Measurement(round_number, BARE, "", threads, BARE_SECONDS, found["rate"], found["median"], 0, 0, 0)


def run(options: argparse.Namespace) -> None:
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.output.exists() and not options.resume:
        sys.exit(f"{options.output} exists: continue it with --resume, or name another file")
    results = Results(options.output)
    graph = Graph()
    cells = len(options.images) * len(options.concurrency)
    each = STARTUP_ESTIMATE + len(options.images) * WARM_UP_SECONDS + cells * (options.seconds + 0.4)
    left = sum(not results.done(number, peer.name) for number in range(options.rounds) for peer in options.peers)
    print(f"{left} measurements of a peer left, with {cells} cells each: about {left * each / 60:.0f} min", flush=True)
    for number in range(options.rounds):
        if not results.done(number, BARE):
            results.add(measure_bare(options.venvs, number))
        turn = number % len(options.peers)
        for peer in options.peers[turn:] + options.peers[:turn]:
            if results.done(number, peer.name):
                continue
            started = time.monotonic()
            try:
                results.add(list(measure(options, peer, number, graph)))
            except PeerError as error:
                print(f"round {number + 1}, {peer.name}: NOT MEASURED: {error}", flush=True)
            else:
                print(f"round {number + 1}, {peer.name}: {time.monotonic() - started:.0f} s", flush=True)
            write_report(options, results)
    print(options.output.with_suffix(".md").read_text())


def write_report(options: argparse.Namespace, results: Results) -> None:
    options.output.with_suffix(".md").write_text(report.render(results, available_cores()))


def comma_separated(text: str) -> list[str]:
    return text.split(",")


def named_peers(text: str) -> list[Peer]:
    known = {peer.name: peer for peer in PEERS}
    try:
        return [known[name] for name in text.split(",")]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"{error} is not one of {', '.join(known)}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prepare", "run", "report"])
    parser.add_argument("--peers", type=named_peers, default=PEERS, help="comma-separated; all by default")
    parser.add_argument(
        "--venvs", type=Path, default=Path("build/peers-venvs"), help="a folder of virtual environments"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="seconds for each cell")
    parser.add_argument(
        "--concurrency", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 32, 64]
    )
    parser.add_argument("--images", type=comma_separated, default=list(IMAGES), help="png,jpeg")
    parser.add_argument("--output", type=Path, default=Path("build/peers.csv"))
    parser.add_argument("--resume", action="store_true", help="continue the output file")
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.peers, options.venvs)
    elif options.command == "run":
        run(options)
    else:
        write_report(options, Results(options.output))
        print(options.output.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
