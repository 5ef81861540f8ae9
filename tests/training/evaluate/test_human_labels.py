"""Accuracy by other people's labels, from small made-up files; the published ones are not in the repository."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from app.bundle.manifest import sha256
from tests.training.conftest import Answer
from training.data.cifar10 import CLASSES
from training.errors import TrainingError
from training.evaluate import human_labels
from training.evaluate.human_labels import (
    CIFAIR,
    CIFAR10H,
    CLEANLAB,
    GITHUB,
    NO_LABEL,
    HumanLabels,
    Source,
    figures,
    parse_corrections,
    parse_duplicates,
    parse_shares,
    read_human_labels,
)
from training.evaluate.metrics import wilson

LABELS = np.arange(20) % 10  # of the tiny test set
CSV = b"TestID,TrainID,Distance,Judgment\r\n"
SOURCES = {"CIFAR10H": CIFAR10H, "CIFAIR": CIFAIR, "CLEANLAB": CLEANLAB}


def one_hot(labels: Sequence[int]) -> np.ndarray:
    return np.eye(len(CLASSES))[list(labels)]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def vote(image: int, given: int, guessed: int, /, **votes: int) -> dict[str, object]:
    return {"id": image, "given_original_label": given, "our_guessed_label": guessed, "mturk": votes}


def publish(monkeypatch: pytest.MonkeyPatch, name: str, source: Source, content: bytes, **changes: str) -> None:
    """From now on, `content` is what the source has published."""
    monkeypatch.setattr(human_labels, name, source._replace(sha256=sha256(content), **changes))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files for 20 test images: images 0 and 1 have near-duplicates, image 2 is a cat by 4 of 5 votes."""
    contents = {
        "CIFAR10H": npy(one_hot(LABELS)),
        "CIFAIR": CSV + b"0,17,0.1,1\r\n1,18,0.1,0\r\n2,19,0.2,2\r\n",
        "CLEANLAB": json.dumps([vote(2, 2, 3, given=1, guessed=4, neither=0, both=0)]).encode(),
    }
    (tmp_path / "labels").mkdir()
    for name, content in contents.items():
        (tmp_path / "labels" / SOURCES[name].name).write_bytes(content)
        publish(monkeypatch, name, SOURCES[name], content)
    return tmp_path / "labels"


def test_figures_are_counted_by_group() -> None:
    labels = np.array([0, 1, 2, 3, 4])
    shares = one_hot([0, 1, 2, 9, 4])
    shares[1, 1:3] = 0.95, 0.05
    shares[2, 2:4] = 0.8, 0.2
    shares[3, 8:] = 0.4, 0.6  # nine, not three
    shares[4, 4:6] = 0.5  # a draw
    human = HumanLabels(shares, np.array([True, False, False, False, True]), np.array([0, 1, 3, 3, NO_LABEL]))
    found = figures(np.array([0, 1, 3, 9, 4]), labels, human)
    assert [(one.name, one.n, one.accuracy.value, one.given) for one in found] == [
        ("CIFAR-10's labels", 5, 3 / 5, 1),
        ("CIFAR-10H's labels", 4, 3 / 4, 3 / 4),
        ("- chosen by at least 95 %", 2, 1, 1),
        ("- chosen by 80 to 95 %", 1, 0, 1),
        ("- chosen by less than 80 %", 1, 1, 0),
        ("without near-duplicates", 3, 1 / 3, 1),
        ("near-duplicates alone", 2, 1, 1),
        ("labels corrected by votes", 4, 3 / 4, 3 / 4),
    ]
    assert found[0].accuracy.ci95 == wilson(3, 5) and found[1].accuracy.ci95 == wilson(3, 4)


def test_a_group_without_images_has_no_figure() -> None:
    human = HumanLabels(one_hot(LABELS), np.zeros(20, np.bool_), LABELS)
    assert [one.name for one in figures(LABELS, LABELS, human)] == [
        "CIFAR-10's labels",
        "CIFAR-10H's labels",
        "- chosen by at least 95 %",
        "without near-duplicates",
        "labels corrected by votes",
    ]


def test_exact_and_near_duplicates_count_but_similar_images_do_not() -> None:
    listed = parse_duplicates(CSV + b"4,17,0.1,1\r\n3,18,0.2,2\r\n0,9,0.0,0\r\n4,1,0.2,2\r\n", 5)
    assert listed.tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("votes", "label"),
    [
        ({"given": 3, "guessed": 0, "neither": 0, "both": 2}, 4),
        ({"given": 1, "guessed": 4, "neither": 0, "both": 0}, 7),
        ({"given": 2, "guessed": 1, "neither": 1, "both": 1}, 4),
        ({"given": 2, "guessed": 2, "neither": 1, "both": 0}, NO_LABEL),
        ({"given": 1, "guessed": 1, "neither": 3, "both": 0}, NO_LABEL),
        ({"given": 1, "guessed": 1, "neither": 0, "both": 3}, NO_LABEL),
        ({"given": 0, "guessed": 2, "neither": 2, "both": 1}, NO_LABEL),
        ({}, NO_LABEL),
    ],
)
def test_the_only_winner_of_a_vote_becomes_the_label(votes: dict[str, int], label: int) -> None:
    labels = np.array([1, 4])
    assert parse_corrections(json.dumps([vote(1, 4, 7, **votes)]).encode(), labels).tolist() == [1, label]
    assert labels.tolist() == [1, 4]


def test_the_three_files_are_read(folder: Path) -> None:
    human = read_human_labels(folder, LABELS, download=False)
    assert human.shares.tolist() == one_hot(LABELS).tolist()
    assert np.flatnonzero(human.duplicates).tolist() == [0, 1]
    assert human.corrected.tolist() == [0, 1, 3, *LABELS[3:]]


@pytest.mark.parametrize("array", [one_hot([0]), one_hot(LABELS)[:, :9], one_hot(LABELS).astype(np.float32)])
def test_shares_of_another_shape_or_type_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"in place of float64 \[20, 10\]"):
        parse_shares(npy(array), 20)


@pytest.mark.parametrize("wrong", [(np.nan, 1), (-0.5, 1.5), (0.5, 1)])
def test_shares_that_are_no_shares_are_refused(wrong: tuple[float, float]) -> None:
    shares = one_hot(LABELS)
    shares[0, [4, 0]] = wrong
    with pytest.raises(ValueError, match="sum to 1"):
        parse_shares(npy(shares), 20)


def test_a_pickle_is_not_loaded() -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        parse_shares(npy(np.array([[{}]], dtype=object)), 1)


VOTES = {"given": 1, "guessed": 4}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("CIFAR10H", b"", "EOF"),
        ("CIFAR10H", b"PK\x03\x04 an archive", "magic string is not correct"),
        ("CIFAR10H", npy(one_hot(LABELS))[:-8], "cannot reshape|could not|EOF"),
        ("CIFAIR", b"TestID,Judgment\n\xff,1\n", "can't decode"),
        ("CIFAIR", b"TestID,TrainID\n1,2\n", "0.Judgment: Field required"),
        ("CIFAIR", b"TestID,Judgment\n1\n", "0.Judgment: Input should be a valid integer"),
        ("CIFAIR", b"TestID,Judgment\n1,3\n", "0.Judgment: Input should be less than or equal to 2"),
        ("CIFAIR", b"TestID,Judgment\n-1,1\n", "0.TestID: Input should be greater than or equal to 0"),
        ("CIFAIR", b"TestID,Judgment\n20,1\n", "there is no image 20: the test set has 20"),
        ("CIFAIR", b"TestID,Judgment\n" + b"1" * 200_000 + b",1\n", "field larger than field limit"),
        ("CLEANLAB", b"[{", "content: Invalid JSON"),
        ("CLEANLAB", b"{}", "content: Input should be a valid array"),
        ("CLEANLAB", json.dumps([{"id": 1}]).encode(), "0.given_original_label: Field required"),
        ("CLEANLAB", json.dumps([vote(1, 1, 10, **VOTES)]).encode(), "0.our_guessed_label: Input should be less"),
        ("CLEANLAB", json.dumps([vote(1, 1, 2, abstained=3)]).encode(), "Input should be 'given'"),
        ("CLEANLAB", json.dumps([vote(20, 0, 2, **VOTES)]).encode(), "there is no image 20"),
        ("CLEANLAB", json.dumps([vote(1, 3, 2, **VOTES)]).encode(), "image 1 has label 1, not 3"),
    ],
)
def test_damaged_files_are_refused_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, said: str
) -> None:
    (folder / SOURCES[name].name).write_bytes(content)
    publish(monkeypatch, name, SOURCES[name], content)
    with pytest.raises(TrainingError, match=f"{SOURCES[name].name} is damaged: .*({said})") as refused:
        read_human_labels(folder, LABELS, download=False)
    assert "\n" not in str(refused.value)


def test_an_additional_column_does_not_matter() -> None:
    assert parse_duplicates(b"TestID,Judgment\n1,1,2,3\n", 2).tolist() == [False, True]


def test_another_file_than_the_published_one_is_refused(folder: Path) -> None:
    (folder / CIFAIR.name).write_bytes(CSV)
    with pytest.raises(TrainingError, match="is not the published file: remove it, and --download fetches https://"):
        read_human_labels(folder, LABELS, download=True)


def test_a_missing_file_and_a_folder_that_is_a_file_are_refused(folder: Path) -> None:
    (folder / CLEANLAB.name).unlink()
    with pytest.raises(TrainingError, match=f"{CLEANLAB.name} is missing: --labels names its folder, --download"):
        read_human_labels(folder, LABELS, download=False)
    with pytest.raises(TrainingError, match=r"cannot read .* \(Not a directory\): --labels names its folder"):
        read_human_labels(folder / CIFAIR.name, LABELS, download=True)


def test_a_missing_file_is_fetched_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, origin = folder / CIFAIR.name, tmp_path / "origin"
    content = path.read_bytes()
    path.rename(origin)
    publish(monkeypatch, "CIFAIR", CIFAIR, content, url=origin.as_uri())
    read_human_labels(folder, LABELS, download=True)
    assert path.read_bytes() == content
    origin.unlink()
    read_human_labels(folder, LABELS, download=True)


def test_a_failed_or_wrong_download_leaves_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, origin = folder / CIFAIR.name, tmp_path / "origin"
    content = path.read_bytes()
    path.unlink()
    publish(monkeypatch, "CIFAIR", CIFAIR, content, url=origin.as_uri())
    with pytest.raises(TrainingError, match=r"cannot download file:.*: --labels may name a folder") as refused:
        read_human_labels(folder, LABELS, download=True)
    assert "\n" not in str(refused.value)
    origin.write_bytes(content[:-1])
    with pytest.raises(TrainingError, match="is not the file that was published: its sha256 is not"):
        read_human_labels(folder, LABELS, download=True)
    assert not path.exists()


@pytest.mark.parametrize("source", SOURCES.values(), ids=lambda source: source.name)
def test_sources_are_pinned_to_a_commit(source: Source) -> None:
    assert source.url.startswith(f"{GITHUB}/") and len(source.url.split("/")[5]) == 40 and len(source.sha256) == 64


def test_the_command_prints_the_figures_of_each_run_and_reads_no_image(
    command: Callable[..., Answer], run_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data.cifar10.load", lambda *_, **__: pytest.fail("it read images"))
    answer = command("labels", run_dir, run_dir, "--labels", folder, "--no-download")
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    assert lines[0] == f"{run_dir}: accuracy, its 95 % interval, the accuracy of CIFAR-10's own labels"
    accuracy = json.loads((run_dir / "report.json").read_text())["accuracy"]["value"]
    assert lines[1].split() == [
        *("CIFAR-10's", "labels", "20", "images", f"{accuracy:.2%}"),
        *("{:.2%} to {:.2%}".format(*wilson(round(20 * accuracy), 20)).split()),
        "100.00%",
    ]
    counts = [line.split(" images")[0].split()[-1] for line in lines[1:7]]
    assert counts == ["20", "20", "20", "18", "2", "20"]
    assert lines[6].endswith(" 95.00%")  # one of 20 labels was corrected


def test_the_command_s_errors_are_one_line(
    command: Callable[..., Answer], run_dir: Path, folder: Path, tmp_path: Path
) -> None:
    for arguments, said in [
        ([run_dir, "--labels", tmp_path / "none", "--no-download"], "cifar10h_probs.npy is missing"),
        ([run_dir, tmp_path / "none", "--labels", folder], "holds no run"),
    ]:
        answer = command("labels", *arguments)
        assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1) and said in answer.err
    (run_dir / "report.json").unlink()
    assert "was not evaluated" in command("labels", run_dir, "--labels", folder).err
