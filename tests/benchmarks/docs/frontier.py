"""Plot test accuracy against multiply-adds into docs/frontier.png, for the bundles in models/ and public MobileNetV2s.

python -m tests.benchmarks.docs.frontier     # after every export of a new bundle
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

from app.bundle.names import MANIFEST
from app.bundle.reader import Bundle
from training.atomic_files import write_atomically
from training.export.plots import BLUE, GREY, new_figure, png

ROOT = Path(__file__).parents[3]
PICTURE = ROOT / "docs" / "frontier.png"


class Public(NamedTuple):
    """The figures that a repository publishes for its MobileNetV2.

    `macs`: millions of multiply-adds in convolutions and linear layers, counted as ours. `picked`: whether the accuracy
    is that of the best epoch on the test images. `beside`: the side of the label, so that labels do not overlap.
    """

    label: str
    url: str
    accuracy: float
    macs: float
    picked: bool
    beside: str


KUANGLIU = "https://github.com/kuangliu/pytorch-cifar"
CHENYAOFO = "https://github.com/chenyaofo/pytorch-cifar-models"
HUYVNPHAN = "https://github.com/huyvnphan/PyTorch_CIFAR10"
HAOKANG = "https://github.com/HaoKang-Timmy/finetune"

# Only chenyaofo publishes the accuracies of all epochs (in the branch `logs`), so only there the last one is known.
PUBLIC = (
    Public("HaoKang-Timmy, fine-tuned, 224 px", HAOKANG, 0.9616, 301, True, "left"),
    Public("kuangliu", KUANGLIU, 0.9443, 91, True, "right"),
    Public("huyvnphan", HUYVNPHAN, 0.9391, 88, True, "right"),
    Public("chenyaofo", CHENYAOFO, 0.9379, 88, True, "right"),
    Public("chenyaofo", CHENYAOFO, 0.9359, 88, False, "right"),
    Public("chenyaofo, width 1.4", CHENYAOFO, 0.9422, 170, True, "right"),
    Public("chenyaofo, width 1.4", CHENYAOFO, 0.9390, 170, False, "right"),
    Public("chenyaofo, width 0.75", CHENYAOFO, 0.9372, 59, True, "left"),
    Public("chenyaofo, width 0.5", CHENYAOFO, 0.9288, 28, True, "right"),
)


class Ours(NamedTuple):
    """A bundle's name, accuracy with its 95 % interval, and multiply-adds in millions."""

    name: str
    accuracy: float
    ci95: tuple[float, float]
    macs: float


def ours(models: Path) -> Iterator[Ours]:
    """One point for each bundle of floats in the folder, sorted by name; integers make no fewer multiply-adds."""
    for path in sorted(models.glob(f"*/{MANIFEST}")):
        bundle = Bundle.load(path.parent)
        if bundle.manifest.quantisation:
            continue
        accuracy = bundle.report.accuracy
        yield Ours(bundle.manifest.name, accuracy.value, accuracy.ci95, bundle.manifest.macs / 1e6)


def draw(points: list[Ours]) -> bytes:
    """The plot as a PNG."""
    figure, (axes,) = new_figure(8.4, 5.4, 1)
    for picked, face, text in ((True, "none", "best epoch on the test images"), (False, GREY, "last epoch")):
        some = [one for one in PUBLIC if one.picked is picked]
        axes.scatter(
            [one.macs for one in some],
            [one.accuracy for one in some],
            facecolors=face,
            edgecolors=GREY,
            marker="s",
            label=f"public MobileNetV2: {text}",
        )
    for one in PUBLIC:
        _write(axes, one.label, one.macs, one.accuracy, one.beside, GREY)
    axes.errorbar(
        [one.macs for one in points],
        [one.accuracy for one in points],
        [[one.accuracy - one.ci95[0] for one in points], [one.ci95[1] - one.accuracy for one in points]],
        color=BLUE,
        marker="o",
        linestyle="none",
        capsize=4,
        label="this project: last epoch, 95 % interval",
    )
    for one in points:
        _write(axes, f"{one.name}, {one.accuracy:.2%}", one.macs, one.accuracy, "right", BLUE)
    axes.set_xscale("log")
    axes.set_xlim(15, 500)
    axes.set_ylim(0.923, 0.967)
    axes.xaxis.set_major_locator(FixedLocator([20, 50, 100, 200, 400]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f} M"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.set_title("MobileNetV2 on CIFAR-10: accuracy and cost of an answer")
    axes.set_xlabel("Multiply-adds an image (log scale)")
    axes.set_ylabel("Test accuracy")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    return png(figure)


def _write(axes: Axes, text: str, x: float, y: float, beside: str, colour: str) -> None:
    away, end = (8, "left") if beside == "right" else (-8, "right")
    axes.annotate(text, (x, y), (away, 0), textcoords="offset points", ha=end, va="center", color=colour, fontsize=9)


def main() -> None:
    write_atomically(PICTURE, draw(list(ours(ROOT / "models"))))


if __name__ == "__main__":
    main()
