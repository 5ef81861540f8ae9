"""The sections of the model card about how far to trust an answer."""

from collections.abc import Sequence

from app.bundle.manifest import Manifest
from app.bundle.report import (
    AbstentionReport,
    CalibrationReport,
    ConformalReport,
    Estimate,
    Report,
    RobustnessReport,
    SelectiveReport,
)

METHODS = {
    "maximum_softmax": "largest probability",
    "maximum_logit": "largest logit",
    "energy": "energy",
    "mahalanobis": "Mahalanobis, features of unit length",
    "knn": "tenth nearest neighbour of 250",
    "residual": "length along unusual directions",
    "novelty": "the last two together",
}


def render_card_trust(manifest: Manifest, report: Report) -> str:
    """Markdown with one section per subject; subjects that the report lacks are left out."""
    parts = [_probabilities(manifest)]
    if report.calibration:
        parts.append(_calibration(report.calibration))
    if report.conformal:
        parts.append(_conformal(report.conformal, manifest.classes))
    if report.abstention:
        parts.append(_abstention(report.abstention))
    if report.selective:
        parts.append(_selective(report.selective))
    if report.robustness:
        parts.append(_robustness(report.robustness))
    return "\n".join(parts)


def _probabilities(manifest: Manifest) -> str:
    if manifest.calibration is None:
        return "Probabilities are softmax(logits), not calibrated.\n"
    temperature = manifest.calibration.temperature
    return f"Probabilities are softmax(logits / {temperature:.3f}), calibrated on the calibration split.\n"


def _calibration(calibration: CalibrationReport) -> str:
    rows = [
        (label, _with_interval(scores.ece, 100, " %"), _with_interval(scores.nll), _with_interval(scores.brier))
        for label, scores in (("without", calibration.before), ("with the temperature", calibration.after))
    ]
    return _section(
        "Calibration",
        "The difference between probabilities and the frequency of right answers on the test images, with 95 %\n"
        "bootstrap intervals. Resampling inflates the calibration error, so for small errors the interval can lie\n"
        "above the estimate.",
        ("", "expected calibration error (15 bins of equally many)", "negative log-likelihood", "Brier score"),
        rows,
        picture=("Reliability diagram", "reliability.png"),
    )


def _conformal(conformal: ConformalReport, classes: list[str]) -> str:
    rows = []
    for level in conformal.levels:
        low, high = level.expected_coverage
        worst = min(range(len(classes)), key=level.class_coverage.__getitem__)
        rows.append(
            (
                f"{level.coverage * 100:g} %",
                _percent(level.raw_coverage),
                f"{low * 100:.2f} to {_percent(high)}",
                _percent(level.served_coverage),
                f"{level.mean_size:.3f}",
                f"{classes[worst]}, {_percent(level.class_coverage[worst])}",
            )
        )
    return _section(
        "Prediction sets",
        f"Split conformal prediction (least ambiguous sets), fitted on {conformal.fitted_on:,} calibration images.\n"
        "The served set also holds the most probable class, so it is never empty. The level holds on average over\n"
        "images like CIFAR-10's, not for every class, and not for other images.",
        ("level", "raw coverage", "what chance allows (99 %)", "served coverage", "mean size", "least covered class"),
        rows,
    )


def _abstention(abstention: AbstentionReport) -> str:
    kinds = list(abstention.methods[0].far)
    rows = []
    for one in abstention.methods:
        near = "not measured" if one.near_mean is None else f"{one.near_mean:.4f}"
        by_pair = " ".join(f"{area:.3f}" for area in one.near)
        name = METHODS[one.method] + (" (**served**)" if one.method == abstention.method else "")
        rows.append((name, near, by_pair, *(f"{one.far[kind]:.4f}" for kind in kinds)))
    return _section(
        "Abstention",
        f"Above an `ood_score` of {abstention.threshold:.4f} the service abstains: for 5 % of the calibration images,\n"
        f"and for {_percent(1 - abstention.kept)} of the test images. Areas under the ROC curve (0.5 is chance) of\n"
        "scores that could detect an image of none of the classes. Near: two classes left out of training, for five\n"
        "networks with 24.5 M multiply-adds and three epochs; the served score was chosen on these same images, so\n"
        "its figure is optimistic. Far: generated images, and Fashion-MNIST where it was available, against the\n"
        "selection split."
        f"{_weaker(abstention)}",
        ("score", "near, mean", "near, by pair", *(f"far: {kind.replace('_', ' ')}" for kind in kinds)),
        rows,
    )


def _weaker(abstention: AbstentionReport) -> str:
    """A warning if the largest probability detects far images better than the served score."""
    means = {one.method: sum(one.far.values()) / len(one.far) for one in abstention.methods}
    if means[abstention.method] >= means["maximum_softmax"]:
        return ""
    return "\nFor this network, a low `probability` detects far images better than `abstain`: use both."


def _selective(selective: SelectiveReport) -> str:
    wanted = (0.5, 0.8, 0.9, 0.95, 1.0)
    nearest = [min(selective.curve, key=lambda one: abs(one.coverage - share)) for share in wanted]
    rows = [(f"{one.coverage:.1%}", _percent(one.accuracy)) for one in nearest]
    return _section(
        "Answering only when sure",
        f"Accuracy when only the most confident images are answered. Area under the risk-coverage curve\n"
        f"{_with_interval(selective.aurc)}; a ranking with every error last would have {selective.optimal_aurc:.5f}.",
        ("answered", "accuracy on those"),
        rows,
        picture=("Risk and coverage", "risk_coverage.png"),
    )


def _robustness(robustness: RobustnessReport) -> str:
    rows = [
        (one.name.replace("_", " "), *(f"{accuracy * 100:.1f} %" for accuracy in one.accuracy))
        for one in robustness.corruptions
    ]
    return _section(
        "Corrupted images",
        f"Accuracy on {robustness.n:,} test images under 15 corruptions: {_percent(robustness.mean_accuracy)} on\n"
        f"average, {_percent(robustness.clean_accuracy)} without. The corruptions follow CIFAR-10-C, but are this\n"
        "project's own code: do not compare the figures with those of the published files.",
        ("corruption", *(f"severity {severity}" for severity in range(1, 6))),
        rows,
        picture=("Robustness", "robustness.png"),
    )


def _section(
    title: str,
    text: str,
    head: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    picture: tuple[str, str] | None = None,
) -> str:
    lines = [f"### {title}", "", text, "", _row(head), _row(("---",) * len(head)), *map(_row, rows), ""]
    if picture:
        lines += [f"![{picture[0]}]({picture[1]})", ""]
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(fraction: float) -> str:
    return f"{fraction * 100:.2f} %"


def _with_interval(estimate: Estimate, scale: float = 1, unit: str = "") -> str:
    low, high = estimate.ci95
    digits = 2 if unit else 4
    return f"{estimate.value * scale:.{digits}f}{unit} ({low * scale:.{digits}f} to {high * scale:.{digits}f}{unit})"
