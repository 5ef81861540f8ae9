"""Images for Schemathesis, which loads this module through SCHEMATHESIS_HOOKS; see conformance.py."""

from pathlib import Path

import schemathesis
from hypothesis import strategies
from schemathesis.transport.serialization import Binary

images = strategies.sampled_from([path.read_bytes() for path in sorted(Path(__file__).parents[2].glob("data/*.png"))])

schemathesis.openapi.format("binary", images.map(Binary))
for kind in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, images)
