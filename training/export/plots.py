"""The bundle's pictures, as the bytes of PNG files."""

import io
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from app.bundle.report import CalibrationReport, Epoch, RobustnessReport, SelectiveReport
from training.data.cifar10 import CLASSES
from training.evaluate.metrics import Counts, Floats, confidence_bins
from training.evaluate.network_outputs import Predictions

Pixels = npt.NDArray[np.uint8]
BLUE, ORANGE, GREY = "#1f77b4", "#d95f02", "#767676"  # told apart by the colour-blind too
DPI = 144
MOST_COUNTED, MOST_NAMED = 20, 40  # classes of a confusion matrix with counts in its cells, and of one that is drawn
MOST_CONFUSIONS = 25  # that are drawn instead of a matrix
LONGEST_NAME = 24  # of a class, in characters


def accuracy_and_loss(history: Sequence[Epoch]) -> bytes:
    """Accuracy and loss over the epochs, on training images as they were augmented and on the selection split."""
    epochs = [row.epoch for row in history]
    figure, panels = new_figure(10, 4.2, 2)
    for axes, quantity, title in zip(panels, ("accuracy", "loss"), ("Accuracy", "Loss (nats)"), strict=True):
        last = []
        for part, label, colour, marker in (
            ("train", "training, augmented", ORANGE, "s"),
            ("validation", "selection split, averaged weights", BLUE, "o"),
        ):
            values = [getattr(row, f"{part}_{quantity}") for row in history]
            axes.plot(epochs, values, color=colour, marker=marker, label=label)
            last.append(_last(quantity, values[-1]))
        axes.set_title(f"{title}\nat the end {last[0]} in training, {last[1]} held out")
        axes.set_xlabel("Epoch")
        axes.set_ylabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    _legend_below(panels[0], figure)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[1].set_ylim(bottom=0)
    return png(figure)


def confusion(counts: Counts, classes: Sequence[str] = CLASSES) -> bytes:
    """Counts in every cell, coloured by the share of its row (the true class).

    Of many classes the colours alone, and of more than can be told apart the most frequent mistakes.
    """
    if len(classes) > MOST_NAMED:
        return _most_frequent_mistakes(counts, classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wider = max(0, len(classes) - 14) * 0.25
    figure, (axes,) = new_figure(8.4 + wider, 7.4 + wider, 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= MOST_COUNTED:
        for row, column in np.ndindex(counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=9)
    places, names = range(len(classes)), [_short(name) for name in classes]
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")
    axes.set_title(f"Confusion matrix, {counts.sum():,} test images")
    bar = figure.colorbar(picture, ax=axes, label="Share of the true class", shrink=0.85)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    return png(figure)


def _most_frequent_mistakes(counts: Counts, classes: Sequence[str]) -> bytes:
    wrong = counts - np.diag(np.diag(counts))
    most = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [divmod(place, len(classes)) for place in most.tolist() if wrong.flat[place]]
    figure, (axes,) = new_figure(8.4, 7.4, 1)
    places = range(len(pairs))
    axes.barh(places, [wrong[pair] for pair in pairs], color=ORANGE)
    names = [f"{_short(classes[row])}, taken for {_short(classes[column])}" for row, column in pairs]
    axes.set_yticks(places, names, parse_math=False)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("Test images")
    axes.set_title(
        f"The most frequent mistakes among {len(classes):,} classes\n"
        f"{wrong.sum():,} of {counts.sum():,} test images are classified wrongly"
    )
    return png(figure)


def reliability(scored: Predictions, calibration: CalibrationReport, bins: int = 15) -> bytes:
    """Reliability diagram (DeGroot & Fienberg 1983): how often the top answer is right at a given confidence."""
    binned = confidence_bins(scored, calibration.temperature, bins)
    raw = confidence_bins(scored, 1.0, bins)
    filled, known = binned.counts > 0, raw.counts > 0
    edges = np.linspace(0, 1, bins + 1)
    figure, (axes, below) = new_figure(6.4, 7, 2, rows=True)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="confidence = accuracy")
    axes.bar(
        edges[:-1][filled], binned.accuracy[filled], 1 / bins, align="edge", color=BLUE, edgecolor="white", alpha=0.6
    )
    axes.plot(
        binned.confidence[filled],
        binned.accuracy[filled],
        color=BLUE,
        marker="o",
        label=f"calibrated, temperature {calibration.temperature:.2f}",
    )
    axes.plot(raw.confidence[known], raw.accuracy[known], color=ORANGE, marker="s", alpha=0.6, label="not calibrated")
    before, after = calibration.before.ece.value, calibration.after.ece.value
    axes.set_title(
        f"Reliability, {len(scored.labels):,} test images\n"
        f"expected calibration error {after:.2%}, {before:.2%} before calibration"
    )
    axes.set_ylabel("Accuracy")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _legend_below(axes, figure)
    below.bar(edges[:-1], binned.counts, 1 / bins, align="edge", color=GREY, edgecolor="white")
    below.set_yscale("symlog", linthresh=1)
    below.set_ylim(bottom=0)
    below.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    below.set_ylabel("Images (log scale)")
    below.set_xlabel("Confidence: probability of the top answer")
    for panel in (axes, below):
        panel.set_xlim(0, 1)
        panel.xaxis.set_major_formatter(PercentFormatter(1.0))
        panel.grid(alpha=0.3)
    return png(figure)


def risk_coverage(report: SelectiveReport) -> bytes:
    """Error among the answered images, over the share of images that are answered."""
    figure, (axes,) = new_figure(6.4, 4.4, 1)
    coverage = [one.coverage for one in report.curve]
    axes.plot(coverage, [1 - one.accuracy for one in report.curve], color=BLUE, label="ranked by confidence")
    errors = 1 - report.curve[-1].accuracy
    best = [max(share - (1 - errors), 0) / share for share in coverage]
    axes.plot(coverage, best, color=GREY, linestyle="--", label="every mistake ranked last")
    low, high = report.aurc.ci95
    axes.set_title(f"Risk and coverage\narea {report.aurc.value:.5f} (95 % interval {low:.5f} to {high:.5f})")
    axes.set_xlabel("Coverage: share of images answered")
    axes.set_ylabel("Risk: errors among the answers")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    return png(figure)


def robustness(report: RobustnessReport) -> bytes:
    """Accuracy by corruption and severity."""
    shares = np.array([one.accuracy for one in report.corruptions])
    figure, (axes,) = new_figure(6.4, 7.2, 1)
    picture = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(shares.shape):
        colour = "black" if shares[row, column] > 0.55 else "white"
        axes.text(column, row, f"{shares[row, column]:.0%}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_yticks(range(len(shares)), [one.name.replace("_", " ") for one in report.corruptions])
    axes.set_xticks(range(shares.shape[1]), [str(severity + 1) for severity in range(shares.shape[1])])
    axes.set_xlabel("Severity")
    axes.set_title(
        f"Accuracy on {report.n:,} corrupted test images\n"
        f"mean {report.mean_accuracy:.1%}, uncorrupted {report.clean_accuracy:.1%}"
    )
    bar = figure.colorbar(picture, ax=axes, shrink=0.85)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    return png(figure)


def mistakes(
    images: Pixels,
    truth: Counts,
    predicted: Counts,
    confidence: Floats,
    classes: Sequence[str] = CLASSES,
    columns: int = 6,
) -> bytes:
    """uint8 images [N, H, W, 3] that were classified wrongly, each with its class and the answer."""
    rows = max(-(-len(images) // columns), 1)
    figure, panels = new_figure(1.8 * columns, 2.1 * rows + 0.3 * (rows == 1), rows * columns, columns=columns)
    for panel in panels:
        panel.axis("off")
    for panel, image, label, answer, sure in zip(panels, images, truth, predicted, confidence, strict=False):
        panel.imshow(image, interpolation="nearest")
        title = f"{_short(classes[label])}\nsaid {_short(classes[answer])}, {sure:.1%}"
        panel.set_title(title, fontsize=9, parse_math=False)
    return png(figure)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _legend_below(axes: Axes, figure: Figure) -> None:
    """Below all panels, where it covers no data."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def _last(quantity: str, value: float) -> str:
    return f"{value:.2%}" if quantity == "accuracy" else f"{value:.3f}"


def new_figure(
    width: float, height: float, panels: int, *, rows: bool = False, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure, its size in inches, without pyplot, which keeps global state and chooses a backend."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if rows:
        grid = figure.subplots(panels, 1, squeeze=False, gridspec_kw={"height_ratios": [2.5, 1]})
    else:
        columns = columns or panels
        grid = figure.subplots(panels // columns, columns, squeeze=False)
    return figure, list(grid.flat)


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # a class's name may be Chinese
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()
