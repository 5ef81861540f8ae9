"""The sections of the model card about how far to trust an answer."""

from collections.abc import Sequence

from app.bundle.manifest import DataSet, Manifest
from app.bundle.report import (
    AbstentionReport,
    CalibrationReport,
    CalibrationScores,
    ConformalReport,
    Estimate,
    Interval,
    LabelAccuracy,
    PhotographReport,
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
    "entropy": "entropy",
}


def render_card_trust(manifest: Manifest, report: Report) -> str:
    """Markdown with one section per subject; subjects that the report lacks are left out."""
    parts = [_probabilities(manifest)]
    if report.calibration:
        parts.append(_calibration(report.calibration))
    if report.conformal:
        parts.append(_conformal(report.conformal, manifest.classes, manifest.data_set))
    elif not _is_cifar10(manifest.data_set):
        parts.append("There are too few calibration images for prediction sets.\n")
    if report.abstention:
        parts.append(_abstention(report.abstention, manifest))
    if report.labels:
        parts.append(_labels(report.labels))
    if report.selective:
        parts.append(_selective(report.selective))
    if report.robustness:
        parts.append(_robustness(report.robustness))
    if report.photographs:
        parts.append(_photographs(report.photographs, manifest.classes))
    return "\n".join(parts)


def _probabilities(manifest: Manifest) -> str:
    if manifest.calibration is None:
        return "Probabilities are softmax(logits), not calibrated.\n"
    temperature = manifest.calibration.temperature
    return f"Probabilities are softmax(logits / {temperature:.3f}), calibrated on the calibration split.\n"


def _calibration(calibration: CalibrationReport) -> str:
    rows = [
        (label, _calibration_error(scores), _with_interval(scores.nll), _with_interval(scores.brier))
        for label, scores in (("without", calibration.before), ("with the temperature", calibration.after))
    ]
    chance = " In brackets, what exact\nprobabilities would show on so many images (95 %)."
    resampled = " Resampling inflates the\ncalibration error, so its interval can lie above it."
    return _section(
        "Calibration",
        "The difference between probabilities and the frequency of right answers on the test images. Likelihood and\n"
        f"Brier score have 95 % bootstrap intervals.{chance if calibration.after.ece_by_chance else resampled}",
        ("", "expected calibration error (15 bins of equally many)", "negative log-likelihood", "Brier score"),
        rows,
        picture=("Reliability diagram", "reliability.png"),
    )


def _calibration_error(scores: CalibrationScores) -> str:
    if scores.ece_by_chance is None:
        return _with_interval(scores.ece, 100, " %")
    low, high = scores.ece_by_chance
    return f"{_percent(scores.ece.value)} ({low * 100:.2f} to {_percent(high)})"


def _labels(labels: Sequence[LabelAccuracy]) -> str:
    return _section(
        "Labels of other people",
        "Accuracy on the test images by published labels, and without images that resemble a training image. The\n"
        "files are not part of this bundle.",
        ("labels", "images", "accuracy (95 %)", "of CIFAR-10's own labels", "source"),
        [(one.name, f"{one.n:,}", _share(one.accuracy), _percent(one.given), one.source) for one in labels],
    )


def _conformal(conformal: ConformalReport, classes: list[str], of: DataSet) -> str:
    rows = []
    alike = "CIFAR-10's" if _is_cifar10(of) else "the calibration images"
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
        f"The served set also holds the most probable class, so it is never empty. The level holds on average over\n"
        f"images like {alike}, {_of_each_class(conformal)}not for other images.",
        ("level", "raw coverage", "what chance allows (99 %)", "served coverage", "mean size", "least covered class"),
        rows,
    )


def _of_each_class(conformal: ConformalReport) -> str:
    levels = [f"{level.coverage * 100:g} %" for level in conformal.levels if level.by_class]
    if not levels:
        return "not for every class, and "
    return f"at {' and '.join(levels)} also for every class with\nenough calibration images, and "


def _abstention(abstention: AbstentionReport, manifest: Manifest) -> str:
    if not _is_cifar10(manifest.data_set):
        return _own_abstention(abstention, manifest)
    kinds = list(abstention.methods[0].far)
    rows = []
    for one in abstention.methods:
        near = "not measured" if one.near_mean is None else f"{one.near_mean:.4f}"
        by_pair = " ".join(f"{area:.3f}" for area in one.near)
        rows.append(
            (_name(one.method, abstention, manifest), near, by_pair, *(f"{one.far[kind]:.4f}" for kind in kinds))
        )
    return _section(
        "Abstention",
        f"Above an `ood_score` of {abstention.threshold:.4f} the service abstains: for 5 % of the calibration images,\n"
        f"and for {_percent(1 - abstention.kept)} of the test images. Areas under the ROC curve (0.5 is chance) of\n"
        "scores that could detect an image of none of the classes. Near: two classes left out of training, for five\n"
        "networks with 24.5 M multiply-adds and three epochs, which never saw pictures of other things. Far:\n"
        "generated images, and Fashion-MNIST where it was available, against the selection split."
        f"{_weaker(abstention)}",
        ("score", "near, mean", "near, by pair", *(f"far: {kind.replace('_', ' ')}" for kind in kinds)),
        rows,
    )


def _own_abstention(abstention: AbstentionReport, manifest: Manifest) -> str:
    kinds = list(abstention.methods[0].far)
    rows = [
        (_name(one.method, abstention, manifest), *(f"{one.far[kind]:.4f}" for kind in kinds))
        for one in abstention.methods
    ]
    refused = (
        f", and for {_share(abstention.refused)} of {abstention.others:,} pictures of other things\n"
        "(`other`) that training did not see."
        if abstention.refused and abstention.others
        else ". There was no folder `other`, so how often it abstains from other\nthings is known of drawn images only."
    )
    return _section(
        "Abstention",
        f"Above an `ood_score` of {abstention.threshold:.4f} the service abstains: for 5 % of the calibration images,\n"
        f"for {_percent(1 - abstention.kept)} of the test images{refused}\n"
        "Areas under the ROC curve (0.5 is chance) of scores that could detect an image of none of the classes:"
        f"{_weaker(abstention)}",
        ("score", *kinds),
        rows,
    )


def _name(method: str, abstention: AbstentionReport, manifest: Manifest) -> str:
    name = METHODS[method]
    if method != abstention.method:
        return name
    temperature = manifest.abstention and manifest.abstention.temperature
    return f"{name} at temperature {temperature:g} (**served**)" if temperature else f"{name} (**served**)"


def _is_cifar10(of: DataSet) -> bool:
    return of == DataSet()


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


def _photographs(photographs: PhotographReport, classes: list[str]) -> str:
    side, abstention = photographs.side, photographs.abstention
    missing = [label for label in classes if label not in {row.label for row in photographs.per_class}]
    rows = [(row.label, _share(row.recall), f"{row.support:,}") for row in photographs.per_class]
    rows.append(("mean of the classes", _percent(photographs.macro_recall), f"{photographs.n:,}"))
    sets = ", ".join(
        f"at {level.coverage * 100:g} % {_percent(level.raw_coverage)}"
        f" ({level.expected_coverage[0] * 100:.2f} to {_percent(level.expected_coverage[1])} by chance)"
        for level in photographs.conformal.levels
    )
    return _section(
        "Photographs",
        f"An image with a side of 64 pixels or more is a photograph. It enters the network with {side}x{side} pixels.\n"
        f"{photographs.n:,} photographs of the classes and {photographs.others:,} of other things measured this. They\n"
        "are of kinds that training never saw (an ImageNet category; a fifth of the pictures where a class has one\n"
        "kind only). As many others calibrated the model. There were no photographs of: "
        f"{', '.join(missing) or 'none'}.\n\n"
        f"- Right: {_share(photographs.accuracy)}.\n"
        f"- The temperature is {photographs.calibration.temperature:.3f}; expected calibration error"
        f" {_with_interval(photographs.calibration.after.ece, 100, ' %')}.\n"
        f"- Prediction sets that hold the true class: {sets}.\n"
        f"- Above an `ood_score` of {abstention.threshold:.4f} the service abstains. It answers\n"
        f"  {_share(abstention.kept)} of the photographs of the classes, and abstains from\n"
        f"  {_share(abstention.refused)} of those of other things. Area under the ROC curve: {abstention.auroc:.3f}.",
        ("class", "recall", "photographs"),
        rows,
    )


def _share(found: Interval) -> str:
    low, high = found.ci95
    return f"{_percent(found.value)} ({low * 100:.2f} to {_percent(high)})"


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
