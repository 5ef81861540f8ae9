"""The load: two images, sent by wrk (Debian: apt-get install wrk)."""

import io
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks.serving.peers.catalogue import ROOT, Body

EXAMPLES = {path.stem: path.read_bytes() for path in sorted((ROOT / "tests/data").glob("*.png"))}
SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method, wrk.body = "POST", file:read("*all")
wrk.headers["Content-Type"] = "{content_type}"
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format("RESULT %d %f %f %f %d %d\\n", summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, errors.status,
    errors.timeout + errors.connect + errors.read + errors.write))
end
"""


def photo() -> bytes:
    """A JPEG of 2048x1536 pixels: an enlarged example with a little noise, so that its file is as large as a photo."""
    enlarged = Image.open(io.BytesIO(EXAMPLES["cat"])).resize((2048, 1536), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, 8, (1536, 2048, 1))
    out = io.BytesIO()
    Image.fromarray((np.asarray(enlarged) + noise).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()


IMAGES = {"png": EXAMPLES["cat"], "jpeg": photo()}


@dataclass(frozen=True)
class Cell:
    """One measurement. The rate is in images a second that were answered with 2xx; times are in milliseconds."""

    rate: float
    median: float
    tail: float  # the 99th percentile
    bad_statuses: int
    socket_errors: int


def wrk(url: str, body: Body, connections: int, seconds: int) -> Cell:
    """Run wrk as a closed loop: one thread, `connections` connections, each with one request in flight."""
    with tempfile.TemporaryDirectory() as folder:
        content, script = Path(folder) / "body", Path(folder) / "post.lua"
        content.write_bytes(body.content)
        script.write_text(SCRIPT.format(body=content, content_type=body.content_type))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url]
        return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def parse(printed: str) -> Cell:
    """Parse the line that SCRIPT prints. Raises ValueError if there is none."""
    found = re.search(r"RESULT (\d+) (\S+) (\S+) (\S+) (\d+) (\d+)", printed)
    if not found:
        raise ValueError(f"wrk printed no result: {printed}")
    requests, duration, median, tail, bad, socket = (float(value) for value in found.groups())
    return Cell((requests - bad) / duration, median, tail, int(bad), int(socket))
