"""The answers of a running service to the ten example images, as the table in docs/results.md.

python tests/benchmarks/docs/examples.py --url http://127.0.0.1:8000
"""

import argparse
from pathlib import Path

import httpx

DATA = Path(__file__).parents[2] / "data"


def rows(client: httpx.Client) -> list[list[str]]:
    """One row for each image: the class, the predicted class, its probability, the second prediction."""
    table = []
    for path in sorted(DATA.glob("*.png")):
        answer = client.post("/predict?top_k=2", files={"file": path.read_bytes()}).raise_for_status().json()
        best, second = answer["predictions"]
        label = best["label"] if best["label"] == path.stem else f"**{best['label']}** (wrong)"
        table.append([path.stem, label, f"{best['probability']:.3f}", f"{second['label']} {second['probability']:.3f}"])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args()
    print("| image | answer | probability | second |\n| --- | --- | --- | --- |")
    with httpx.Client(base_url=options.url) as client:
        for row in rows(client):
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
