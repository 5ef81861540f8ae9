import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from app.bundle.manifest import Calibration, Manifest, manifest_digest, render_manifest, sha256
from app.bundle.names import CARD, MANIFEST
from app.bundle.reader import Bundle
from app.bundle.report import Interval, LabelAccuracy, Report
from tests.training.conftest import Answer
from training.evaluate.abstention import SERVED
from training.export.card import render_card

ROOT = Path(__file__).parents[3]


@pytest.fixture
def manifest(finished_bundle: Path) -> Manifest:
    return Bundle.load(finished_bundle).manifest


@pytest.fixture
def report(finished_bundle: Path) -> Report:
    return Bundle.load(finished_bundle).report


def test_the_code_of_the_card_runs_and_agrees(
    finished_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(finished_bundle.parent)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    onnx_code, torch_code = re.findall(r"```python\n(.*?)```", (finished_bundle / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(onnx_code, names)
    by_onnx = names["logits"]
    exec(torch_code, names)
    assert names["logits"].numpy() == pytest.approx(by_onnx, abs=1e-4)  # type: ignore[attr-defined]
    assert capsys.readouterr().out.strip() in Bundle.load(finished_bundle).manifest.classes


def test_the_front_matter_has_this_model_s_figures(manifest: Manifest, report: Report) -> None:
    before, front, _ = render_card(manifest, report).split("---\n", 2)
    assert before == ""
    lines = front.splitlines()
    assert {"license: mit", "datasets: [cifar10]", "pipeline_tag: image-classification"} <= set(lines)
    assert f"    - {{type: accuracy, value: {report.accuracy.value:.4f}}}" in lines
    assert front.count("{") == front.count("}") and "\t" not in front


def test_the_card_says_what_the_report_says(manifest: Manifest, report: Report) -> None:
    card = render_card(manifest, report)
    for row in report.per_class:
        assert (
            f"| {row.label} | {row.precision * 100:.2f} % | {row.recall * 100:.2f} % | {row.f1 * 100:.2f} % |" in card
        )
    assert f"{report.accuracy.value * 100:.2f} % (95 % interval" in card
    for figure in ("96.16 %", "94.43 %", "93.91 %", "93.79 %", "about 79 %"):
        assert figure in card
    for name, value in manifest.provenance["config"].items():
        assert (f"| `{name}` | {value} |" in card) == (name != "input_size")
    assert "{" not in card.split("## Use")[0].split("---\n")[2]


@pytest.mark.parametrize(
    ("digest", "said"),
    [
        (
            "sha256:10ddce9f1091038c619c9a7782de8fb56cd182b1651df9c4bb7ff51aa1d58399",
            "tf2_mobilenet_v2_1.0_224_ptq.tflite` (int8 weights, Apache-2.0)",
        ),
        ("torchvision:MobileNet_V2_Weights.IMAGENET1K_V2", "torchvision's ImageNet weights"),
        ("sha256:1234", "Initial weights: `sha256:1234`."),
    ],
)
def test_initial_weights_are_named_as_what_they_are(manifest: Manifest, report: Report, digest: str, said: str) -> None:
    origin = manifest.provenance | {"initial_weights": digest}
    assert said in render_card(manifest.model_copy(update={"provenance": origin}), report)


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in ROOT.glob("models/*/bundle.json")), ids=lambda folder: folder.name
)
def test_shipped_cards_are_rendered_from_today_s_template_and_name_the_first_weights_licence(folder: Path) -> None:
    bundle = Bundle.load(folder)
    draft = bundle.manifest.model_copy(update={"files": {}})
    assert bundle.read("README.md").decode() == render_card(draft, bundle.report)
    assert "(int8 weights, Apache-2.0), and changed" in bundle.read("README.md").decode()


def test_only_the_augmentation_that_was_done_is_told(manifest: Manifest, report: Report) -> None:
    def told(**changes: object) -> str:
        origin = manifest.provenance | {"config": manifest.provenance["config"] | changes}
        return render_card(manifest.model_copy(update={"provenance": origin}), report)

    usual = told()
    assert "mirrored in every second epoch, shifted by up to 4 pixels, a square of 10 pixels hidden." in usual
    assert (
        "half of them zoomed by a factor of up to 1.2, brightness, contrast and saturation changed by up to 30 %"
        in (told(zoom=1.2, colour=0.3))
    )
    assert "Images are shown as they are." in told(flip=False, shift=0, cutout=0)


def test_a_teacher_is_named(manifest: Manifest, report: Report) -> None:
    assert "another network" not in render_card(manifest, report)
    taught = manifest.model_copy(update={"provenance": manifest.provenance | {"teacher": "ab" * 32}})
    assert f"- It also learned from the answers of another network, whose graph has the sha256 `{'ab' * 32}`." in (
        render_card(taught, report)
    )
    taught = manifest.model_copy(update={"provenance": manifest.provenance | {"teacher": f"{'ab' * 32}, {'cd' * 32}"}})
    assert f"the mean answers of 2 networks with graphs of sha256 `{'ab' * 32}`, `{'cd' * 32}`." in (
        render_card(taught, report)
    )


def test_probabilities_are_called_calibrated_only_when_they_are(manifest: Manifest, report: Report) -> None:
    bare = manifest.model_copy(update={"calibration": None})
    assert "softmax(logits), not calibrated" in render_card(bare, report.model_copy(update={"calibration": None}))
    calibrated = manifest.model_copy(update={"calibration": Calibration(temperature=1.25)})
    assert "softmax(logits / 1.250), calibrated" in render_card(calibrated, report)


def test_the_card_has_the_figures_that_trust_rests_on(manifest: Manifest, report: Report) -> None:
    card = render_card(manifest, report)
    assert report.conformal and report.abstention and report.selective and report.robustness and report.calibration
    for level in report.conformal.levels:
        assert f"| {level.coverage * 100:g} % | {level.raw_coverage * 100:.2f} % |" in card
    served = next(one for one in report.abstention.methods if one.method == report.abstention.method)
    assert f"(**served**) | not measured |  | {served.far['noise']:.4f} |" in card
    assert f"an `ood_score` of {report.abstention.threshold:.4f}" in card
    assert f"curve\n{report.selective.aurc.value:.4f} (" in card
    for corruption in report.robustness.corruptions:
        assert f"| {corruption.name.replace('_', ' ')} | {corruption.accuracy[0] * 100:.1f} % |" in card
    for picture in ("reliability", "risk_coverage", "robustness", "mistakes"):
        assert f"({picture}.png)" in card
    assert report.calibration.after.ece_by_chance
    low, high = report.calibration.after.ece_by_chance
    assert f"{report.calibration.after.ece.value * 100:.2f} % ({low * 100:.2f} to {high * 100:.2f} %)" in card


def test_a_report_without_the_range_of_chance_has_the_interval_of_resampling(
    manifest: Manifest, report: Report
) -> None:
    assert report.calibration
    former = report.calibration.after.model_copy(update={"ece_by_chance": None})
    calibration = report.calibration.model_copy(update={"after": former})
    low, high = former.ece.ci95
    card = render_card(manifest, report.model_copy(update={"calibration": calibration}))
    assert f"{former.ece.value * 100:.2f} % ({low * 100:.2f} to {high * 100:.2f} %)" in card


def test_the_card_has_the_accuracy_by_labels_of_other_people(manifest: Manifest, report: Report) -> None:
    labels = [
        LabelAccuracy(
            name="CIFAR-10H's labels", source="A, B", n=9997, accuracy=Interval(value=0.5, ci95=(0.4, 0.6)), given=0.9
        )
    ]
    row = "| CIFAR-10H's labels | 9,997 | 50.00 % (40.00 to 60.00 %) | 90.00 % | A, B |"
    assert row in render_card(manifest, report.model_copy(update={"labels": labels}))
    assert "Labels of other people" not in render_card(manifest, report.model_copy(update={"labels": None}))


def test_the_card_of_a_report_without_trust_has_no_sections_of_it(manifest: Manifest, report: Report) -> None:
    fields = ("calibration", "conformal", "abstention", "selective", "robustness")
    card = render_card(manifest, report.model_copy(update=dict.fromkeys(fields)))
    for heading in ("### Calibration", "### Prediction sets", "### Abstention", "### Corrupted images"):
        assert heading not in card and heading in render_card(manifest, report)


def test_near_areas_are_shown_by_pair(manifest: Manifest, report: Report) -> None:
    assert report.abstention is not None
    methods = [
        one.model_copy(update={"near": [0.1, 0.2, 0.3, 0.4, 0.5], "near_mean": 0.3})
        for one in report.abstention.methods
    ]
    known = report.model_copy(update={"abstention": report.abstention.model_copy(update={"methods": methods})})
    assert "| 0.3000 | 0.100 0.200 0.300 0.400 0.500 |" in render_card(manifest, known)


def test_the_card_says_where_a_run_went_on(manifest: Manifest, report: Report) -> None:
    origin = manifest.provenance
    assert origin["continued"] == []
    hardware = {"cpu": "Another CPU", "threads": 1, "processes": 2}
    later = {"epoch": 1, "step": 7, **origin, "git_commit": "abc", "hardware": hardware}
    card = render_card(manifest.model_copy(update={"provenance": origin | {"continued": [later]}}), report)
    assert "; from step 8 of epoch 2 on: Another CPU, 2 processes, 1 thread each, code abc; " in card


@pytest.mark.parametrize(
    ("initial", "teacher", "how", "alone"),
    [
        ("random:0", None, "from scratch, 32 px, 2 epochs |", ""),
        ("torchvision:MobileNet_V2_Weights.IMAGENET1K_V2", None, "from ImageNet, 32 px, 2 epochs |", ""),
        (
            "sha256:1234",
            None,
            "32 px, 2 epochs after those of the weights that it began with |",
            " (without those of its initial weights)",
        ),
        ("random:0", "ab, cd", "2 epochs, taught by 2 networks |", " (without those of its teachers)"),
        (
            "sha256:1",
            "ab",
            "began with, taught by 1 network |",
            " (without those of its initial weights and its teachers)",
        ),
    ],
)
def test_what_a_run_owes_to_others_is_told(
    manifest: Manifest, report: Report, initial: str, teacher: str | None, how: str, alone: str
) -> None:
    origin = manifest.provenance | {"initial_weights": initial, "teacher": teacher}
    card = render_card(manifest.model_copy(update={"provenance": origin}), report)
    assert how in card.split("| this one |")[1].splitlines()[0] + "|"
    assert f"core hours{alone}. AdamW" in card


def test_settings_of_a_record_that_is_older_than_some_of_them_are_all_told(manifest: Manifest, report: Report) -> None:
    config = {name: value for name, value in manifest.provenance["config"].items() if name != "enlarge"}
    older = manifest.model_copy(update={"provenance": manifest.provenance | {"config": config}})
    assert "| `enlarge` | 1 |" in render_card(older, report)


def test_a_score_that_tells_less_than_the_largest_probability_is_warned_of(manifest: Manifest, report: Report) -> None:
    def told(served: float) -> bool:
        assert report.abstention is not None
        methods = [
            one.model_copy(update={"far": dict.fromkeys(one.far, served if one.method == SERVED else 0.8)})
            for one in report.abstention.methods
        ]
        known = report.model_copy(update={"abstention": report.abstention.model_copy(update={"methods": methods})})
        return "better than `abstain`: use both" in render_card(manifest, known)

    assert told(0.7) and not told(0.9)


def test_the_card_command_changes_nothing_but_the_card(
    finished_bundle: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    bundle = tmp_path / finished_bundle.name
    shutil.copytree(finished_bundle, bundle)
    before = Bundle.load(bundle).manifest
    assert command("card", bundle).code == 0
    assert Bundle.load(bundle).manifest == before  # the template is the one that it was rendered from
    fields = json.loads((bundle / MANIFEST).read_bytes())
    (bundle / CARD).write_text("an older card")
    fields["files"][CARD] = sha256(b"an older card")
    fields["digest"] = manifest_digest(fields)
    (bundle / MANIFEST).write_bytes(render_manifest(fields))
    assert command("card", bundle).code == 0
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == {
        path.name: path.read_bytes() for path in finished_bundle.iterdir()
    }
    (bundle / CARD).write_text("damaged")
    assert "README.md is damaged" in command("card", bundle).err


def test_the_card_says_how_its_intervals_of_f1_were_made(manifest: Manifest, report: Report) -> None:
    older = [row.model_copy(update={"f1_ci95": (row.f1, row.f1)}) for row in report.per_class]
    assert "intervals of F1 are Wilson's, too" in render_card(manifest, report)
    bootstrapped = report.model_copy(update={"per_class": older})
    assert "intervals of F1 are a bootstrap" in render_card(manifest, bootstrapped)
