"""Generate valid and invalid requests from the OpenAPI document, and check the answers against the document.

    python -m tests.benchmarks.faults.conformance --schemathesis /path/to/schemathesis

Install Schemathesis separately (`pip install schemathesis`): otherwise every run of pytest would load it as a plugin.
JSON Schema cannot describe an image, so schemathesis_images.py supplies images. Goal: no failure.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.app.server import serve


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
            cwd=Path(__file__).parent,
            env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_images"},
        )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
