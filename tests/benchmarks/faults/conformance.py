"""Requests made up from the OpenAPI document, good and bad, and whether the answers are what the document says.

    python -m tests.benchmarks.faults.conformance --schemathesis /path/to/schemathesis

Schemathesis is installed apart (`pip install schemathesis`): it would load itself into every run of pytest. Where the
document says "an image", JSON Schema has no word for one; schemathesis_images.py beside this file makes some.
Goal: no failure.
"""

import argparse
import os
import subprocess
import sys

from tests.app.server import serve
from tests.conftest import ROOT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemathesis", default="schemathesis")
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with serve(LOG_LEVEL="error") as (_, client):
        done = subprocess.run(
            [
                *(options.schemathesis, "run", f"{client.base_url}/openapi.json", "--no-color"),
                *("--max-examples", str(options.examples), "--seed", str(options.seed)),
            ],
            cwd=ROOT / "tests/benchmarks",
            env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_images"},
        )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
