"""Compare the figures of the shipped models in README.md and docs/ with the reports of the bundles.

python -m tests.benchmarks.docs.figures             # prints each difference; exit code 1 if there is any
python -m tests.benchmarks.docs.figures --write     # corrects them, after every export of a new bundle

Figures from a running service (speed, the container) and those of other commands are not in the reports and are not
checked. Nor is docs/log, which is history.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from starlette.testclient import TestClient

from app.bundle.manifest import Manifest
from app.bundle.reader import Bundle
from app.bundle.report import AbstentionReport, ConformalScores, PhotographReport, Report
from app.main import create_app
from app.settings import Settings
from tests.benchmarks.docs.examples import DATA, rows

ROOT = Path(__file__).parents[3]
BUNDLE = ROOT / "models" / "mobilenet_v2_cifar10"
SMALL = ROOT / "models" / "mobilenet_v2_cifar10_small"
README, RESULTS, DESIGN = "README.md", "docs/results.md", "docs/design.md"
# A figure ends at a table border, a bracket or the end of a paragraph, so it never extends into the next figure.
FIGURE = r"((?:(?!\n\n)[^|()])+?)"
SCORES = {  # in addition to the served one
    "maximum_softmax": "largest probability",
    "novelty": "two distances between features, served before 1.5.0",
}
CORRUPTIONS = {"gaussian_noise": "Gaussian noise", "jpeg_compression": "JPEG"}
# Numbers with four significant digits, except 1.000: they do not equal a figure of the report by coincidence.
DISTINCTIVE = re.compile(r"(?<![\d.,])(?!1\.0+\b)(?=[0.]*[1-9](?:\.?\d){3})\d+\.\d+(?![.,]?\d)")


class Statement(NamedTuple):
    """A sentence or table row that a file must contain exactly once. Its figures are between < and >.

    Line breaks do not matter. <> is a figure that is measured elsewhere and is not checked. The text must begin with
    words.
    """

    file: str
    text: str

    def figures(self) -> list[str]:
        return re.findall("<(.*?)>", self.text)

    def find(self, content: str) -> re.Match[str]:
        """The match in `content`, with any figures. Raises ValueError unless there is exactly one."""
        words = (re.sub(r"\\?\s+", r"\\s+", re.escape(part)) for part in re.split("<.*?>", self.text))
        found = list(re.finditer(FIGURE.join(words) + r"(?!\w)", content))
        if len(found) != 1:
            raise ValueError(f"{self.file} must say once, but says {len(found)} times: {self.text}")
        return found[0]

    def wrong(self, content: str) -> list[tuple[str, str]]:
        """The figures that differ, as pairs (printed in `content`, correct)."""
        printed = (" ".join(figure.split()) for figure in self.find(content).groups())
        return [(one, other) for one, other in zip(printed, self.figures(), strict=True) if other and one != other]

    def renewed(self, content: str) -> str:
        """`content` with the correct figures."""
        match = self.find(content)
        for group, figure in reversed(list(enumerate(self.figures(), 1))):
            if figure and " ".join(match[group].split()) != figure:
                content = content[: match.start(group)] + figure + content[match.end(group) :]
        return content


def _time(origin: Mapping[str, Any]) -> str:
    """How long the last run took."""
    gpu = origin.get("gpu")
    return f"{gpu['measured_seconds']:.0f} s of a GPU" if gpu else f"{origin['cpu_hours']:.1f} core hours"


def statements(bundle: Bundle, small: Bundle | None) -> Iterator[Statement]:
    manifest, report = bundle.manifest, bundle.report
    yield from _rows("default", manifest, report)
    if small:
        yield from _rows("small", small.manifest, small.report)
    yield from _calibration(report)
    yield from _conformal(manifest, report)
    assert manifest.abstention and manifest.abstention.temperature
    yield from _abstention(report, manifest.abstention.temperature)
    yield from _selective(report)
    yield from _robustness(report)
    if small and report.photographs and small.report.photographs:
        yield from _photographs(report.photographs, small.report.photographs)


def _rows(name: str, manifest: Manifest, report: Report) -> Iterator[Statement]:
    """The rows of a model in the tables."""
    origin = manifest.provenance
    yield Statement(
        README,
        f"| **{name}** | **<{_percent(report.accuracy.value)} %>** (<{_interval(report)}>) | "
        f"<{manifest.macs / 1e6:.3g}> M | <> ms |",
    )
    yield Statement(
        RESULTS,
        f"| **{name}** | <{report.macro_avg.f1:.4f}> | <{manifest.input.width}> px | "
        f"<{manifest.parameters / 1e6:.2f}> M | <{origin['config']['epochs']}> | <{_time(origin)}> |",
    )
    yield Statement(RESULTS, f"| **{name}** | {' | '.join(f'<{row.f1:.2f}>' for row in report.per_class)} |")


def _calibration(report: Report) -> Iterator[Statement]:
    calibration = report.calibration
    assert calibration
    before, after = calibration.before, calibration.after
    yield Statement(
        RESULTS,
        f"The temperature <{calibration.temperature:.3f}>, fitted on <{calibration.fitted_on:,}> calibration images, "
        "changes the expected calibration error (15 bins of equally many images) "
        f"from <{_percent(before.ece.value)}> % "
        f"to <{_percent(after.ece.value)}> %, the negative log-likelihood from <{before.nll.value:.4f}> to "
        f"<{after.nll.value:.4f}> and the Brier score from <{before.brier.value:.4f}> to <{after.brier.value:.4f}>.",
    )
    if after.ece_by_chance:
        low, high = after.ece_by_chance
        yield Statement(
            RESULTS,
            f"Exact probabilities would show <{low * 100:.2f}> to <{_percent(high)}> % on so many images (95 %).",
        )


def _conformal(manifest: Manifest, report: Report) -> Iterator[Statement]:
    assert report.conformal and manifest.calibration and manifest.calibration.conformal and report.abstention
    for level in report.conformal.levels:
        low, high = level.expected_coverage
        worst = min(range(len(manifest.classes)), key=level.class_coverage.__getitem__)
        yield Statement(
            RESULTS,
            f"| {level.coverage * 100:g} % | <{_percent(level.raw_coverage)}> % | "
            f"<{_percent(low)} to {_percent(high)}> % | <{_percent(level.served_coverage)}> % | "
            f"<{level.mean_size:.3f}> | <{manifest.classes[worst]}, {_percent(level.class_coverage[worst])}> % |",
        )
        if level.coverage == 0.95:
            yield Statement(DESIGN, f"Without it <{level.empty * 100:.1f}> % of the 95 % sets would be empty")
        if level.coverage == manifest.calibration.conformal.default_coverage:
            yield Statement(
                README,
                f"| `thumbnails`: CIFAR-10's test images | <{report.accuracy.value * 100:.1f}> % | "
                f"<{_percent(level.served_coverage)}> % | <{level.mean_size:.2f}> | "
                f"<{_refused(report.abstention)}> % | |",
            )


def _abstention(report: Report, temperature: float) -> Iterator[Statement]:
    assert report.abstention
    for one in report.abstention.methods:
        far = " | ".join(f"<{one.far[kind]:.3f}>" for kind in ("noise", "textures", "fashion_mnist"))
        if one.method == report.abstention.method:
            yield Statement(RESULTS, f"| **served** | {far} |")
        elif one.method in SCORES:
            yield Statement(RESULTS, f"| {SCORES[one.method]} | {far} |")
    yield Statement(RESULTS, f"The score is the entropy of softmax(logits / <{temperature:g}>)")
    yield Statement(
        RESULTS,
        f"The threshold <{report.abstention.threshold:.3f}> is exceeded by 5 % of the calibration images and by "
        f"<{_refused(report.abstention)}> % of the test images.",
    )


def _selective(report: Report) -> Iterator[Statement]:
    assert report.selective
    aurc = report.selective.aurc
    right = [_percent(_accuracy_of(report, share)) for share in (0.8, 0.9, 0.95)]
    yield Statement(
        RESULTS,
        f"Of the 80 % most confident answers <{right[0]}> % are right, of 90 % <{right[1]}> %, of 95 % <{right[2]}> %. "
        f"The area under the risk-coverage curve is <{aurc.value:.5f}>; with every mistake ranked last it would be "
        f"<{report.selective.optimal_aurc:.5f}>.",
    )


def _robustness(report: Report) -> Iterator[Statement]:
    robustness = report.robustness
    assert robustness
    means = sorted((sum(one.accuracy) / len(one.accuracy), one.name) for one in robustness.corruptions)
    told = [f"<{CORRUPTIONS.get(name, name.replace('_', ' '))}> (<{mean * 100:.0f}> %)" for mean, name in means]
    yield Statement(
        RESULTS,
        f"On <{robustness.n:,}> test images accuracy is <{robustness.mean_accuracy * 100:.1f}> % on average, "
        f"<{robustness.clean_accuracy * 100:.1f}> % without corruption. Worst: {told[0]}, {told[1]}, {told[2]}. "
        f"Best: {told[-1]}, {told[-2]}, {told[-3]}.",
    )


def _photographs(default: PhotographReport, small: PhotographReport) -> Iterator[Statement]:
    both = (default, small)

    def row(name: str, figure: Callable[[PhotographReport], str], goal: str) -> Statement:
        return Statement(RESULTS, f"| {name} | {' | '.join(f'<{figure(one)}>' for one in both)} |{goal} |")

    def level(one: PhotographReport, coverage: float) -> ConformalScores:
        return next(level for level in one.conformal.levels if level.coverage == coverage)

    def worst(one: PhotographReport) -> str:
        lowest = min(one.per_class, key=lambda row: row.recall.value)
        return f"{lowest.label}, {lowest.recall.value * 100:.0f} %"

    def right(one: PhotographReport) -> str:
        low, high = one.accuracy.ci95
        return f"<{one.accuracy.value * 100:.1f}> % (<{low * 100:.1f}–{high * 100:.1f}>)"

    yield Statement(
        RESULTS,
        f"never saw](gpu.md): <{default.n:,}> of nine classes (not deer), and <{default.others:,}> of other things.",
    )
    yield Statement(RESULTS, f"| right | {' | '.join(map(right, both))} | 88 % |")
    yield row("mean of the classes", lambda one: f"{one.macro_recall * 100:.1f} %", " 88 %")
    yield row("worst class", worst, "")
    for coverage in (0.95, 0.99):
        low, high = (bound * 100 for bound in level(default, coverage).expected_coverage)
        means = " | ".join(f"<{level(one, coverage).raw_coverage * 100:.1f}> %" for one in both)
        chance = f"<{low:.1f}> to <{high:.1f}> % by chance"
        yield Statement(
            RESULTS, f"| {coverage * 100:g} % sets hold the true class ({chance}) | {means} | in the range |"
        )
    yield row(
        "labels in a 95 %, 99 % set",
        lambda one: ", ".join(f"{level(one, coverage).mean_size:.2f}" for coverage in (0.95, 0.99)),
        "",
    )
    yield row("known against other, area under the ROC curve", lambda one: f"{one.abstention.auroc:.3f}", " 0.93")
    yield row(
        "abstains on photographs of the classes", lambda one: f"{(1 - one.abstention.kept.value) * 100:.1f} %", " 5 %"
    )
    yield row("abstains on other things", lambda one: f"{one.abstention.refused.value * 100:.1f} %", " 70 %")
    yield row("expected calibration error", lambda one: f"{one.calibration.after.ece.value * 100:.1f} %", "")
    promised = level(default, 0.99)
    yield Statement(
        README,
        "| `photographs` of [kinds it never saw](docs/results.md#photographs) | "
        f"<{default.accuracy.value * 100:.1f}> % | <{_percent(promised.served_coverage)}> % | "
        f"<{promised.mean_size:.2f}> | <{(1 - default.abstention.kept.value) * 100:.1f}> % | "
        f"<{default.abstention.refused.value * 100:.1f}> % |",
    )


def _refused(abstention: AbstentionReport) -> str:
    return f"{(1 - abstention.kept) * 100:.1f}"


def _accuracy_of(report: Report, share: float) -> float:
    assert report.selective
    return min(report.selective.curve, key=lambda one: abs(one.coverage - share)).accuracy


def _interval(report: Report) -> str:
    low, high = report.accuracy.ci95
    return f"{_percent(low)} to {_percent(high)} %"


def _percent(fraction: float) -> str:
    return f"{fraction * 100:.2f}"


def shipped() -> tuple[Bundle, Bundle | None]:
    """The default bundle, and the small one where there is one."""
    return Bundle.load(BUNDLE), Bundle.load(SMALL) if SMALL.exists() else None


def answered(readme: str, client: TestClient) -> str:
    """README.md with the answer to its request as `client` receives it now; the times stay."""
    block = r'(?<=```json\n)\{\n  "model":.*?\n\}\n(?=```)'
    (shown,) = re.findall(block, readme, re.DOTALL)
    answer = client.post("/predict?top_k=3", content=(DATA / "cat.png").read_bytes()).json()
    predictions = ",\n".join(f"    {json.dumps(one)}" for one in answer["predictions"])
    members = {name: json.dumps(value) for name, value in answer.items()}
    members |= {"predictions": f"[\n{predictions}\n  ]", "timing_ms": json.dumps(json.loads(shown)["timing_ms"])}
    order = "model", "predictions", "prediction_set", "abstain", "ood_score", "ood_threshold", "views"
    order += "measured_on", "timing_ms"
    renewed = ",\n".join(f'  "{name}": {members[name]}' for name in order)
    return _replaced(README, readme, block, f"{{\n{renewed}\n}}\n")


def tabulated(results: str, client: TestClient) -> str:
    """docs/results.md with the current answers of the service to the ten example images."""
    return _replaced(
        RESULTS,
        results,
        r"(?<=\| image \| answer \| probability \| second \|\n)(\| --- ){4}\|\n(\|.*?\n)+?(?=\n)",
        "| --- | --- | --- | --- |\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows(client)),
    )


def _replaced(file: str, content: str, pattern: str, by: str) -> str:
    content, count = re.subn(pattern, lambda _: by, content, flags=re.DOTALL)
    assert count == 1, f"{file} must have one place of the form {pattern}, but has {count}"
    return content


def strays(file: str, content: str, held: Sequence[Statement]) -> list[str]:
    """Figures in `content` that no statement checks but that equal a figure of the reports in four digits or more."""
    figures = {figure for one in held for text in one.figures() for figure in DISTINCTIVE.findall(text)}
    spans = [
        match.span(group + 1)
        for one in held
        if one.file == file
        for match in [one.find(content)]
        for group in range(len(one.figures()))
    ]
    for start, end in spans:
        content = content[:start] + " " * (end - start) + content[end:]
    return [figure for figure in DISTINCTIVE.findall(content) if figure in figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="correct the differences")
    options = parser.parse_args()
    bundle, small = shipped()
    contents = {name: (ROOT / name).read_text() for name in (README, RESULTS, DESIGN)}
    differ = 0
    for statement in statements(bundle, small):
        for printed, correct in statement.wrong(contents[statement.file]):
            print(f"{statement.file}: {printed} is now {correct}")
            differ += 1
        contents[statement.file] = statement.renewed(contents[statement.file])
    if options.write:
        with TestClient(create_app(Settings(_env_file=None, model_dir=BUNDLE))) as client:
            contents[README] = answered(contents[README], client)
            contents[RESULTS] = tabulated(contents[RESULTS], client)
        for name, content in contents.items():
            (ROOT / name).write_text(content)
    sys.exit(bool(differ) and not options.write)


if __name__ == "__main__":
    main()
