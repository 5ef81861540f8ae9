"""The figures in README.md and docs/ that come from the bundles: whether they are their own, and to make them so.

python -m tests.benchmarks.figures             # tells what differs; exit code 1 if anything does
python -m tests.benchmarks.figures --write     # after every export of a new bundle

All are of the default bundle but for the small one's rows in README.md's tables, which must be there when it is. What a
service measured elsewhere says (capacity, photographs, the container) is not in a bundle, and stays.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from starlette.testclient import TestClient

from app.bundle.reader import Bundle, Manifest
from app.bundle.report import Report
from app.main import create_app
from app.settings import Settings
from tests.benchmarks.examples import DATA, rows
from training.export.card_trust import METHODS

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "models" / "mobilenet_v2_cifar10"
SMALL = ROOT / "models" / "mobilenet_v2_cifar10_small"
README, RESULTS, DESIGN = "README.md", "docs/results.md", "docs/design.md"
# A figure: no table's border, bracket or end of a paragraph in it, so that none is taken for another.
FIGURE = r"((?:(?!\n\n)[^|()])+?)"
CLASSICS = ("maximum_logit", "energy", "mahalanobis", "knn")
DAMAGES = {"gaussian_noise": "Gaussian noise", "jpeg_compression": "JPEG"}


class Statement(NamedTuple):
    """What a file must say, once, however its lines are broken; begins with words. Figures stand between < and >.

    <> is a figure that is measured elsewhere: there must be one, and it stays.
    """

    file: str
    text: str

    def figures(self) -> list[str]:
        return re.findall("<(.*?)>", self.text)

    def find(self, content: str) -> re.Match[str]:
        """Where it is said, with whatever figures. Raises ValueError if that is not in exactly one place."""
        words = (re.sub(r"\\?\s+", r"\\s+", re.escape(part)) for part in re.split("<.*?>", self.text))
        found = list(re.finditer(FIGURE.join(words) + r"(?!\w)", content))
        if len(found) != 1:
            raise ValueError(f"{self.file} must say once, but says {len(found)} times: {self.text}")
        return found[0]

    def wrong(self, content: str) -> list[tuple[str, str]]:
        """Pairs of what is said and what is true."""
        said = (" ".join(figure.split()) for figure in self.find(content).groups())
        return [(one, other) for one, other in zip(said, self.figures(), strict=True) if other and one != other]

    def renewed(self, content: str) -> str:
        match = self.find(content)
        for group, figure in reversed(list(enumerate(self.figures(), 1))):
            if figure and " ".join(match[group].split()) != figure:
                content = content[: match.start(group)] + figure + content[match.end(group) :]
        return content


def statements(bundle: Bundle, small: Bundle | None) -> Iterator[Statement]:
    manifest, report = bundle.manifest, bundle.report
    yield from _rows("this one", manifest, report)
    if small:
        yield from _rows("the small one", small.manifest, small.report)
    yield from _accuracy(report)
    yield from _calibration(report)
    yield from _conformal(manifest, report)
    yield from _abstention(report)
    yield from _selective(report)
    yield from _robustness(report)


def _rows(name: str, manifest: Manifest, report: Report) -> Iterator[Statement]:
    """A bundle's rows in the tables of README.md."""
    origin = manifest.provenance
    yield Statement(
        README,
        f"| **{name}** | **<{_percent(report.accuracy.value)} %>** (<{_interval(report)}>) | "
        f"<{manifest.input.width}> px, <{manifest.macs / 1e6:.3g}> M | <{manifest.parameters / 1e6:.2f}> M | <> ms | "
        f"<{origin['cpu_hours']:.1f}> | <{origin['config']['epochs']}> epochs",
    )
    yield Statement(README, f"| **{name}** | {' | '.join(f'<{row.f1:.2f}>' for row in report.per_class)} |")


def _accuracy(report: Report) -> Iterator[Statement]:
    yield Statement(
        RESULTS,
        f"report.json). <{_percent(report.accuracy.value)}> % on the <{report.n:,}> test images, 95 % interval "
        f"<{_interval(report)}>; macro F1 <{report.macro_avg.f1:.4f}>.",
    )


def _calibration(report: Report) -> Iterator[Statement]:
    calibration = report.calibration
    assert calibration
    before, after = calibration.before, calibration.after
    ece = _percent(after.ece.value)
    yield Statement(
        README, f"expected calibration error on the test set is <{ece}> %, <{_percent(before.ece.value)}> % before"
    )
    yield Statement(RESULTS, f"calibration error of at most 0.7 % (<{ece}> %, above)")
    yield Statement(
        RESULTS, f"Calibration, temperature <{calibration.temperature:.3f}> from the <{calibration.fitted_on:,}> images"
    )
    for name, score in (
        ("expected calibration error, 15 bins of equally many images", "ece"),
        ("negative log-likelihood, nats", "nll"),
        ("Brier score", "brier"),
    ):
        cells = (
            f"<{one.value:.4f}> (<{one.ci95[0]:.4f} to {one.ci95[1]:.4f}>)"
            for one in (getattr(before, score), getattr(after, score))
        )
        yield Statement(RESULTS, f"| {name} | {' | '.join(cells)} |")


def _conformal(manifest: Manifest, report: Report) -> Iterator[Statement]:
    assert report.conformal and manifest.calibration and manifest.calibration.conformal and report.selective
    for level in report.conformal.levels:
        low, high = level.expected_coverage
        worst = min(range(len(manifest.classes)), key=level.class_coverage.__getitem__)
        yield Statement(
            RESULTS,
            f"| {level.coverage * 100:g} % | <{_percent(level.raw_coverage)}> % | "
            f"<{_percent(low)} to {_percent(high)}> % | <{_percent(level.served_coverage)}> % | "
            f"<{level.mean_size:.3f}> | <{level.sizes[0] / report.n * 100:.1f}> % | "
            f"<{manifest.classes[worst]}, {_percent(level.class_coverage[worst])}> % |",
        )
        if level.coverage == 0.95:
            yield Statement(DESIGN, f"Without it <{level.empty * 100:.1f}> % of the 95 % sets would be empty")
        if level.coverage == manifest.calibration.conformal.default_coverage:
            yield Statement(
                README,
                f"the sets hold the true class <{_percent(level.served_coverage)}> % of the time at "
                f"<{level.mean_size:.2f}> labels on average, and answers given with at least the confidence of the "
                f"surest 90 % are right <{_percent(_accuracy_of(report, 0.9))}> % of the time.",
            )


def _abstention(report: Report) -> Iterator[Statement]:
    assert report.abstention
    refused = f"{(1 - report.abstention.kept) * 100:.1f}"
    near = {}
    for one in report.abstention.methods:
        assert one.near_mean is not None
        near[one.method] = one.near_mean
        far = (one.far[kind] for kind in ("noise", "textures", "fashion_mnist"))
        areas = " | ".join(f"<{area:.3f}>" for area in (*one.near, *far))
        name, mean = METHODS[one.method], f"<{one.near_mean:.4f}>"
        if one.method == report.abstention.method:
            name, mean = f"**{name}, served**", f"**{mean}**"
        yield Statement(RESULTS, f"| {name} | {mean} | {areas} |")
    usual = near["maximum_softmax"]
    gain, classic = near[report.abstention.method] - usual, max(near[name] for name in CLASSICS) - usual
    yield Statement(
        RESULTS,
        f"| <{one.far['fashion_mnist']:.3f}> | <{gain * 100:.1f}> points over the largest probability. "
        f"The five classics gave <{classic * 100:.1f}> at best",
    )
    yield Statement(README, f"images of the kind it knows (<{refused}> % of the test images)")
    yield Statement(
        RESULTS,
        f"Threshold <{report.abstention.threshold:.3f}>: 5 % of the calibration images and <{refused}> % of the test",
    )


def _selective(report: Report) -> Iterator[Statement]:
    assert report.selective
    aurc = report.selective.aurc
    right = [_percent(_accuracy_of(report, share)) for share in (0.8, 0.9, 0.95)]
    yield Statement(
        RESULTS,
        f"area under the risk-coverage curve <{aurc.value:.5f}> (95 % interval <{aurc.ci95[0]:.5f} to "
        f"{aurc.ci95[1]:.5f}>), <{report.selective.optimal_aurc:.5f}> with every mistake last. Of the surest 80 % of "
        f"the answers <{right[0]}> % are right, of 90 % <{right[1]}> %, of 95 % <{right[2]}> %.",
    )


def _robustness(report: Report) -> Iterator[Statement]:
    robustness = report.robustness
    assert robustness
    means = sorted((sum(one.accuracy) / len(one.accuracy), one.name) for one in robustness.corruptions)
    told = [f"<{DAMAGES.get(name, name.replace('_', ' '))}> (<{mean * 100:.0f}> %)" for mean, name in means]
    yield Statement(
        RESULTS,
        f"the published ones), <{robustness.n:,}> test images: <{robustness.mean_accuracy * 100:.1f}> % on average, "
        f"<{robustness.clean_accuracy * 100:.1f}> % without; worst are {told[0]}, {told[1]} and {told[2]}, "
        f"best {told[-1]}, {told[-2]} and {told[-3]}.",
    )


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


def answered(content: str) -> str:
    """README.md with the answers that a service of the bundle gives now; the times stay."""
    block = r'(?<=```json\n)\{\n  "model":.*?\n\}\n(?=```)'
    (shown,) = re.findall(block, content, re.DOTALL)
    with TestClient(create_app(Settings(_env_file=None, model_dir=BUNDLE))) as client:
        table = "".join(f"| {' | '.join(row)} |\n" for row in rows(client))
        answer = client.post("/predict?top_k=3", content=(DATA / "cat.png").read_bytes()).json()
    predictions = ",\n".join(f"    {json.dumps(one)}" for one in answer["predictions"])
    members = {name: json.dumps(value) for name, value in answer.items()}
    members |= {"predictions": f"[\n{predictions}\n  ]", "timing_ms": json.dumps(json.loads(shown)["timing_ms"])}
    order = "model", "predictions", "prediction_set", "abstain", "ood_score", "ood_threshold", "views", "timing_ms"
    renewed = ",\n".join(f'  "{name}": {members[name]}' for name in order)
    content = _replaced(content, block, f"{{\n{renewed}\n}}\n")
    return _replaced(
        content,
        r"(?<=\| image \| answer \| probability \| second \|\n)(\| --- ){4}\|\n(\|.*?\n)+?(?=\n)",
        "| --- | --- | --- | --- |\n" + table,
    )


def _replaced(content: str, pattern: str, by: str) -> str:
    content, count = re.subn(pattern, lambda _: by, content, flags=re.DOTALL)
    assert count == 1, f"README.md or docs/results.md must have one place of the form {pattern}, but has {count}"
    return content


def tabulated(content: str, bundle: Bundle) -> str:
    """docs/results.md with the bundle's report.txt."""
    return _replaced(content, r"(?<=```\n) +precision .*?(?=```)", bundle.read("report.txt").decode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew what differs")
    options = parser.parse_args()
    bundle, small = shipped()
    contents = {name: (ROOT / name).read_text() for name in (README, RESULTS, DESIGN)}
    differ = 0
    for statement in statements(bundle, small):
        for said, true in statement.wrong(contents[statement.file]):
            print(f"{statement.file}: {said} is now {true}")
            differ += 1
        contents[statement.file] = statement.renewed(contents[statement.file])
    if options.write:
        contents[README], contents[RESULTS] = answered(contents[README]), tabulated(contents[RESULTS], bundle)
        for name, content in contents.items():
            (ROOT / name).write_text(content)
    sys.exit(bool(differ) and not options.write)


if __name__ == "__main__":
    main()
