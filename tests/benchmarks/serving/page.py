"""Measure in Chromium how long a visitor of the page waits: from the click to the painted answer.

python tests/benchmarks/serving/page.py --url http://127.0.0.1:8000
"""

import argparse
import shutil
import statistics
from collections.abc import Sequence

from playwright.sync_api import Page, sync_playwright

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SAMPLES = [*CLASSES, "flower", "chessboard"]

# A frame is on the screen when the next frame begins.
PAINTED = "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))"
ANSWER = f"""
async (name) => {{
  document.querySelector("#clear").click();
  const answers = document.querySelector("#answers");
  const answered = new Promise((resolve) => {{
    new MutationObserver((_, observer) => {{
      if (!answers.querySelector("[data-state=answered], [data-state=abstained]")) return;
      observer.disconnect();
      resolve();
    }}).observe(answers, {{ childList: true, subtree: true, attributes: true, attributeFilter: ["data-state"] }});
  }});
  const started = performance.now();
  document.querySelector(`[data-sample="${{name}}.png"]`).click();
  await answered;
  await {PAINTED};
  return performance.now() - started;
}}
"""
MAP = f"""
async () => {{
  const map = document.querySelector(".map");
  const shown = new Promise((resolve) => {{
    new MutationObserver(() => map.hidden || resolve()).observe(map, {{ attributes: true }});
  }});
  const started = performance.now();
  document.querySelector(".answer .quiet").click();
  await shown;
  await {PAINTED};
  return performance.now() - started;
}}
"""
LOADED = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"


def measure(page: Page, url: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds for each kind of wait."""
    times: dict[str, list[float]] = {"page load, until its scripts have run": [], "answer": [], "activation map": []}
    for _ in range(rounds):
        page.goto("about:blank")
        page.goto(url)
        times["page load, until its scripts have run"].append(page.evaluate(LOADED))
        for name in SAMPLES:
            times["answer"].append(page.evaluate(ANSWER, name))
            times["activation map"].append(page.evaluate(MAP))
    return times


def row(kind: str, values: Sequence[float]) -> str:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    figures = " | ".join(f"{value:.0f}" for value in (cuts[49], cuts[94], max(values)))
    return f"| {kind} | {len(values)} | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rounds", type=int, default=10, help="visits; each classifies every sample once")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: at least 2")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        times = measure(browser.new_page(), options.url, options.rounds)
        print(f"Chromium {browser.version}, milliseconds:\n")
        browser.close()
    print("| wait for | n | median | 95th percentile | longest |\n| --- | --- | --- | --- | --- |")
    for kind, values in times.items():
        print(row(kind, values))


if __name__ == "__main__":
    main()
