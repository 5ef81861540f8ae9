"""A model of a user's own classes, from folders of pictures to the service. The first bundle is the document's."""

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from sklearn.utils import Bunch
from starlette.testclient import TestClient

from app.__main__ import main as service_command
from app.bundle.reader import Bundle
from app.inference import drift
from app.inference.sessions import TorchSession, load_session, self_check
from app.local import load
from app.main import create_app
from app.settings import Settings
from tests.conftest import ROOT
from tests.training.conftest import Answer
from tests.training.data.test_own_classes import fill, picture
from training.command_line import main
from training.errors import TrainingError
from training.evaluate import abstention, calibration, evaluate
from training.export import bundle as bundle_module
from training.export import plots

DOCUMENT = (ROOT / "docs/own-classes.md").read_text()
SMALL = ("--epochs", "1", "--init", "random", "--threads", "1", "--enlarge", "1")
QUICK = (*SMALL, "--batch-size", "16", "--ema-every", "1")
CLASSES = ["Käse & Brot", "a|b <i>$x$", "c:d"]  # names that HTML, Markdown, TeX and /v2's classification know


@pytest.fixture(scope="module")
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Few images for the parts of the report that take longest, and pictures that are not drawn."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "UNRELATED_IMAGES", 12)
        patch.setattr(evaluate, "OWN_CORRUPTED_IMAGES", 2)
        patch.setattr(calibration, "RESAMPLES", 20)
        patch.setattr(drift, "LEAST", 1)  # the few calibration images of a test are enough
        compared = {"maximum_softmax": abstention.maximum_softmax}
        patch.setattr(abstention, "COMPARED", compared)
        methods = (*compared, abstention.SERVED)
        for module in (abstention, evaluate):
            patch.setattr(module, "METHODS", methods)
        for name in ("accuracy_and_loss", "confusion", "reliability", "risk_coverage", "robustness", "mistakes"):
            patch.setattr(plots, name, lambda *_: b"a picture")
        yield patch


def train(patch: pytest.MonkeyPatch, *arguments: object) -> None:
    patch.setattr(sys, "argv", ["training", *map(str, arguments), *QUICK])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, quick: pytest.MonkeyPatch) -> Path:
    """Three classes, of which one is rare, for images of 64 pixels, and other things."""
    folder = tmp_path_factory.mktemp("own") / "Pets & Co"
    for number, label in enumerate(CLASSES):
        fill(folder / label, range(100 * number, 100 * number + 20 - 4 * number))
    fill(folder / "other", range(900, 912))
    run = folder.parent / "run"
    train(quick, "all", "--data", folder, "--input-size", "64", "--run-dir", run)
    assert (run / "test_reads.csv").exists()  # not in the log of CIFAR-10's test images
    return run / "bundle"


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[TestClient]:
    settings = Settings(_env_file=None, model_dir=bundle, inference_threads=1, drift_window_images=2)
    with TestClient(create_app(settings)) as running:
        yield running


def test_the_document_s_commands_make_a_bundle_and_classify(
    quick: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    trained, classified, served = re.findall(r"^python -m (\w+ .*)$", DOCUMENT, re.MULTILINE)[:3]
    whole = sklearn.datasets.load_digits()
    quick.setattr(sklearn.datasets, "load_digits", lambda: Bunch(images=whole.images[:200], target=whole.target[:200]))
    quick.chdir(tmp_path)
    exec(program, {})
    assert len(list(Path("digits").glob("*/*.png"))) == 200
    train(quick, *trained.split()[1:])
    quick.setattr(sys, "argv", ["app", *classified.split()[1:]])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        service_command()
    lines = capsys.readouterr().out.splitlines()
    assert not stop.value.code and lines[0].startswith("digits/3/") and lines[0].split()[1] in set("0123456789")
    name, folder = served.split()[-2:]
    assert (name, Bundle.load(Path(folder)).manifest.name) == ("--model", "mobilenet_v2_digits")


def test_the_least_that_is_documented_becomes_a_bundle_that_can_be_served(
    quick: pytest.MonkeyPatch, command: Callable[..., Answer], tmp_path: Path
) -> None:
    least = int(re.findall(r"at least (\d+) pictures", DOCUMENT)[0])
    for number, label in enumerate(("cat", "dog")):
        fill(tmp_path / "pets" / label, range(100 * number, 100 * number + least))
    options = ("--data", tmp_path / "pets", "--run-dir", tmp_path / "run", *SMALL)
    answer = command("all", *options)
    assert answer.code == 0 and "after 1 epoch\n" in answer.out
    assert "steps   of 8 of the 12 images; the weights are averaged every step" in answer.err
    assert "warning" not in answer.err
    assert "start   new, 1 step in 1 epoch\n" in answer.err
    made = Bundle.load(tmp_path / "run/bundle")
    assert all(row.f1_ci95[1] - row.f1_ci95[0] > 0.2 for row in made.report.per_class)
    assert "1 epoch in" in made.read("README.md").decode()
    with load(tmp_path / "run/bundle", inference_threads=1) as classifier:
        assert {row.label for row in classifier(picture(1)).predictions} == {"cat", "dog"}
    assert "start   finished before, with 1 step\n" in command("fit", *options).err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch-size", 64), "--batch-size is 64: it must be at most 13, the training images"),
        (("--ema-every", 4), "--ema-every is 4: it must be at most 1, the steps of the run"),
    ],
)
def test_what_few_images_cannot_have_is_refused_if_it_was_asked_for(
    command: Callable[..., Answer], tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    for number, label in enumerate(("cat", "dog")):
        fill(tmp_path / "pets" / label, range(100 * number, 100 * number + 10))
    shutil.copy(tmp_path / "pets/cat/000.png", tmp_path / "pets/dog")
    answer = command("fit", "--data", tmp_path / "pets", "--run-dir", tmp_path / "run", *SMALL, *options)
    assert "warning 1 picture is in more than one class, for example cat/000.png and dog/000.png\n" in answer.err
    assert answer.code == 1 and answer.err.splitlines()[-1].startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "--input-size", 64], "CIFAR-10's images have 32, others need --data"),
        (["fit", "--data", "FOLDER", "--input-size", 225], "input_size is 225: it must be from 32 to 224"),
        (["all", "--data", "FOLDER", "--photographs", "there"], "--photographs is for CIFAR-10"),
        (["all", "--data", "FOLDER", "--teacher", "models"], "--teacher is for CIFAR-10"),
        (["all", "--data", "FOLDER/cat", "--run-dir", "run"], "--data .*/cat holds 0 folders of classes"),
        (["export", "--data", "FOLDER", "--run-dir", "RUN", "--bundle", "NEW"], "holds other images than the run in"),
        (
            ["export", "--run-dir", "RUN", "--bundle", "NEW"],
            r"was trained on your own classes \(Pets & Co\): name their folder with --data",
        ),
        (["compare", "RUN", "RUN"], r"was trained on your own classes \(Pets & Co\): .* takes only .* on CIFAR-10"),
        (["labels", "RUN"], r"was trained on your own classes \(Pets & Co\): .* takes only .* on CIFAR-10"),
        (["quantise", "RUN", "--run-dir", "NEW"], r"was trained on your own classes \(Pets & Co\): name their folder"),
        (["quantise", "BUNDLE", "--run-dir", "NEW"], r"is a bundle of your own classes \(Pets & Co\): name the run"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    command: Callable[..., Answer], bundle: Path, tmp_path: Path, arguments: list[object], said: str
) -> None:
    for label in ("cat", "dog"):
        fill(tmp_path / "other images" / label, range(12))
    places = {"FOLDER": tmp_path / "other images", "FOLDER/cat": tmp_path / "other images/cat", "RUN": bundle.parent}
    places |= {"NEW": tmp_path / "new", "BUNDLE": bundle}
    answer = command(*(places.get(str(one), one) for one in arguments))
    assert answer.code == 1 and len(answer.err.splitlines()) == 1 and re.search(said, answer.err)


@pytest.mark.parametrize("where", [CLASSES[0], "other"])
@pytest.mark.parametrize("step", ["evaluate", "export", "fit"])
def test_a_picture_that_was_added_or_removed_since_is_noticed(
    command: Callable[..., Answer], bundle: Path, tmp_path: Path, where: str, step: str
) -> None:
    data, run = tmp_path / "Pets & Co", tmp_path / "run"
    shutil.copytree(bundle.parents[1] / data.name, data, copy_function=os.link)
    shutil.copytree(bundle.parent, run, copy_function=os.link)
    sorted((data / where).iterdir())[5].unlink()
    fill(data / where, range(5000, 5003))
    options = {"fit": (*QUICK, "--input-size", "64"), "export": ("--bundle", tmp_path / "new")}.get(step, ())
    answer = command(step, "--data", data, "--run-dir", run, *options)
    assert answer.code == 1 and len(answer.err.splitlines()[-1:]) == 1
    assert re.search("holds other images than the run in|holds another run: .*data differ", answer.err)


def test_other_test_images_are_measured_again(
    command: Callable[..., Answer], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = bundle.parents[1] / "Pets & Co", tmp_path / "run"
    shutil.copytree(bundle.parent, run, copy_function=os.link)
    for module in (evaluate, bundle_module):
        monkeypatch.setattr(module, "measured_on", lambda _: "other pictures")
    options = ("--data", data, "--run-dir", run)
    answer = command("export", *options, "--bundle", tmp_path / "new")
    assert answer.code == 1 and "was evaluated with other pictures than" in answer.err

    def measured(*_: object) -> None:
        raise TrainingError("measured again")

    monkeypatch.setattr(evaluate, "_evaluate", measured)
    assert "measured again" in command("evaluate", *options).err


def test_the_bundle_says_what_it_was_made_from(bundle: Path) -> None:
    made = Bundle.load(bundle)
    manifest, report = made.manifest, made.report
    assert (manifest.name, manifest.classes) == ("mobilenet_v2_pets_co", CLASSES)
    assert manifest.data_set.model_dump() == {"name": "pets_co", "title": "Pets & Co", "one_kind": True}
    assert (manifest.input.height, manifest.input.width) == (64, 64)
    assert [row.label for row in report.per_class] == CLASSES and len({row.support for row in report.per_class}) > 1
    data = manifest.provenance["data"]
    assert [sum(data["images"][label].values()) for label in CLASSES] == [20, 16, 12] and data["other"] == [6, 6]
    assert manifest.provenance["photographs"] == 6  # the other half of `other`
    assert report.abstention is not None and report.abstention.others == 6 and report.abstention.refused is not None
    assert set(report.abstention.methods[0].far) == {"noise", "textures", "other"}
    # 48 images leave eight to calibrate with: too few for any prediction sets.
    assert manifest.calibration is not None and manifest.calibration.conformal is None and report.conformal is None
    members = json.loads(made.read("split.json"))
    assert set(members) == {"train", "select", "calibrate", "test", "other_train", "other_test"}
    assert sum(map(len, members.values())) == 60


def test_the_card_names_classes_as_markdown_needs_it_and_not_cifar10(bundle: Path) -> None:
    card = (bundle / "README.md").read_text()
    assert r"a\|b \<i\>\$x\$" in card and "| other things | 0 | 6 | 0 | 0 | 6 |" in card
    assert "which of 3 classes" in card and "too few calibration images for prediction sets" in card
    assert re.findall("CIFAR-10(?!-C)|ten classes|32x32", card) == []
    widths = {
        line.count("|") - line.count(r"\|") for line in card.splitlines() if line.startswith("| the most frequent")
    }
    assert widths == {7}


def test_no_picture_of_the_user_is_in_the_manifest(bundle: Path) -> None:
    made = Bundle.load(bundle)
    with Image.open(io.BytesIO(made.manifest.self_check.image)) as check:
        shown = np.asarray(check, float)
    for path in sorted(bundle.parents[1].glob("Pets & Co/*/*.png")):
        with Image.open(path) as own:
            assert np.abs(np.asarray(own, float) - shown).mean() > 5


def test_both_engines_give_the_same_answers(bundle: Path) -> None:
    content, _ = load_session(Settings(_env_file=None, model_dir=bundle))
    self_check(TorchSession(Bundle.load(bundle)), content)


@pytest.mark.parametrize("side", [20, 64, 200])
def test_images_of_every_size_get_what_was_measured(client: TestClient, side: int) -> None:
    answer = client.post("/predict?top_k=3", content=png(side)).json()
    assert {row["label"] for row in answer["predictions"]} == set(CLASSES)
    assert answer["abstain"] in (True, False) and answer["ood_threshold"] is not None
    assert answer["measured_on"] == ("photographs" if side >= 64 else "thumbnails")
    assert len(client.post("/predict", content=png(side)).json()["predictions"]) == 3  # five by default, if there are
    assert "from 1 to 3" in client.post("/predict?top_k=6", content=png(side)).json()["detail"]


def test_the_service_s_words_are_of_its_classes(client: TestClient) -> None:
    assert client.get("/model").json()["data_set"]["title"] == "Pets & Co"
    assert client.get("/metrics/report").json()["per_class"][0]["label"] == CLASSES[0]
    assert CLASSES[0] in client.get("/metrics/report", headers={"Accept": "text/plain"}).text
    assert client.get("/metrics/report/mistakes.png").headers["content-type"] == "image/png"
    assert client.post("/explain?class_id=2", content=png(64)).headers["content-type"] == "image/png"
    document = client.get("/openapi.json").json()
    assert document["info"]["title"] == "Pets & Co classifier" and "into 3 classes" in document["info"]["summary"]
    for path in ("/", "/docs"):
        page = client.get(path).text
        assert "<title>Pets &amp; Co classifier" in page and "CIFAR-10" not in page and "data-sample" not in page


def test_drift_is_measured_for_images_of_every_size(client: TestClient) -> None:
    for side in (20, 200):
        client.post("/predict", content=png(side))
    metrics = client.get("/metrics").text
    assert re.search(r'^prediction_drift{of="labels"} \d', metrics, re.MULTILINE)
    assert 'predictions_total{label="a|b <i>$x$"}' in metrics


def test_the_inference_protocol_has_models_with_the_name_of_the_data(client: TestClient) -> None:
    assert client.get("/v2/models").json() == {"models": ["pets_co", "pets_co_image"]}
    assert client.get("/v2/models/pets_co").json()["inputs"][0]["shape"] == [-1, 64, 64, 3]
    pixels = np.asarray(picture(1)).tolist()
    tensor = {"name": "images", "shape": [1, 64, 64, 3], "datatype": "UINT8", "data": pixels}
    answer = client.post("/v2/models/pets_co/infer", json={"inputs": [tensor]}).json()
    assert answer["outputs"][0]["shape"] == [1, 3] and sum(answer["outputs"][0]["data"]) == pytest.approx(1, abs=1e-5)
    asked = {"inputs": [tensor], "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}]}
    best = client.post("/v2/models/pets_co/infer", json=asked).json()["outputs"][0]["data"]
    assert {item.split(":", 2)[2] for item in best} == set(CLASSES)
    assert client.get("/v2/models/cifar10").status_code == 404


def test_a_program_gets_the_same_answers(bundle: Path) -> None:
    with load(bundle, inference_threads=1) as classifier:
        assert {row.label for row in classifier(picture(1)).predictions} == set(CLASSES)


def png(side: int) -> bytes:
    file = io.BytesIO()
    picture(1, (side, side)).save(file, "PNG")
    return file.getvalue()
