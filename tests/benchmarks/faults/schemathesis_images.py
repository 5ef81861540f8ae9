"""Images and coverages for Schemathesis, which loads this module through SCHEMATHESIS_HOOKS; see conformance.py."""

import json
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies
from schemathesis.transport.serialization import Binary

ROOT = Path(__file__).parents[3]
MANIFEST = json.loads((ROOT / "models/mobilenet_v2_cifar10/bundle.json").read_text())
LEVELS = [level["coverage"] for level in MANIFEST["calibration"]["conformal"]["levels"]]

images = strategies.sampled_from([path.read_bytes() for path in sorted(ROOT.glob("tests/data/*.png"))])

schemathesis.openapi.format("binary", images.map(Binary))
for kind in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, images)


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """Replaces a coverage between the levels by a level: the document gives their range and names them in words."""
    coverage = (query or {}).get("coverage")
    if query and isinstance(coverage, float) and min(LEVELS) < coverage < max(LEVELS):
        query["coverage"] = min(LEVELS, key=lambda level: abs(level - coverage))
    return query
