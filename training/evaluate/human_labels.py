"""Accuracy on CIFAR-10's test images by other labels than CIFAR-10's own, and without near-duplicates.

Three published files judge the test images. None of them is part of this project; `read_human_labels` fetches them.

cifar10h_probs.npy               CIFAR-10H: which share of some fifty annotators chose each class. Peterson et al.
                                 2019, arXiv:1908.07086; github.com/jcpeterson/cifar-10h; CC BY-NC-SA 4.0
cifair_duplicates_cifar10.csv    ciFAIR: test images that resemble a training image. Barz and Denzler 2020,
                                 arXiv:1902.00423; github.com/cvjena/cifair
cleanlab_cifar10_mturk.json      votes of five people each on labels that cleanlab doubts. Northcutt et al. 2021,
                                 arXiv:2103.14749; github.com/cleanlab/label-errors; Apache-2.0
"""

import csv
import io
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, NonNegativeInt, TypeAdapter, ValidationError

from app.bundle.manifest import sha256
from app.bundle.report import Interval, LabelAccuracy
from training.atomic_files import write_atomically
from training.data.cifar10 import CLASSES
from training.errors import TrainingError
from training.evaluate.metrics import wilson

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Chosen = npt.NDArray[np.bool_]

LABELS = Path("data/labels")  # by default
TIMEOUT = 30  # seconds without an answer
LARGEST = 16 * 2**20  # bytes of a download
NO_LABEL = -1
SAME_SHOT = 1  # ciFAIR's judgements up to this one are exact and near-duplicates; 2 is "very similar"


class Source(NamedTuple):
    """A published file, at a fixed commit. by: authors and licence."""

    name: str
    by: str
    url: str
    sha256: str


GITHUB = "https://raw.githubusercontent.com"
CIFAR10H = Source(
    "cifar10h_probs.npy",
    "CIFAR-10H, Peterson et al. 2019, CC BY-NC-SA 4.0",
    f"{GITHUB}/jcpeterson/cifar-10h/597cbc5f07266c9405b830ee4a53463539124c4f/data/cifar10h-probs.npy",
    "436ae98620e00073f9d08585ac870573b588853e7af9f54eb1647408114af77d",
)
CIFAIR = Source(
    "cifair_duplicates_cifar10.csv",
    "ciFAIR, Barz and Denzler 2020",
    f"{GITHUB}/cvjena/cifair/4c2764277f5fda8fec6784a78c1818eab13236c5/meta/duplicates_cifar10.csv",
    "4cb7e99a7dfff346082c9d8fa4c2989a196e4a37d1e58f75936046696f1ba6a4",
)
CLEANLAB = Source(
    "cleanlab_cifar10_mturk.json",
    "label-errors, Northcutt et al. 2021, Apache-2.0",
    f"{GITHUB}/cleanlab/label-errors/5457895eee26e49187de5c4d6617b9de6f172221/mturk/cifar10_mturk.json",
    "81b2c16c9eee060d6cc2390f6bbce1e0e7be0a050574be5177c9428f3596b5b5",
)


class HumanLabels(NamedTuple):
    """What people say about N test images, in the order of the test set.

    shares: float64 [N, 10], the share of CIFAR-10H's annotators that chose each class; rows sum to 1. duplicates:
    bool [N], whether ciFAIR lists the image as a near-duplicate of a training image. corrected: int64 [N], the labels
    after cleanlab's votes, NO_LABEL where the vote has no winner, several, or one that is no label.
    """

    shares: Floats
    duplicates: Chosen
    corrected: Labels


def figures(predicted: Labels, labels: Labels, human: HumanLabels) -> list[LabelAccuracy]:
    """The accuracy of `predicted`, int64 [N], by CIFAR-10's `labels`, int64 [N], and by those of people.

    The label of CIFAR-10H is the class that most annotators chose; images with a draw are left out. A group without
    images has no figure.
    """
    agreement = human.shares.max(1)
    most = np.where((human.shares == agreement[:, None]).sum(1) == 1, human.shares.argmax(1), NO_LABEL)
    everything = np.ones(len(labels), np.bool_)
    groups = [
        ("CIFAR-10's labels", "CIFAR-10", labels, everything),
        ("CIFAR-10H's labels", CIFAR10H.by, most, everything),
        ("- chosen by at least 95 %", CIFAR10H.by, most, agreement >= 0.95),
        ("- chosen by 80 to 95 %", CIFAR10H.by, most, (agreement >= 0.8) & (agreement < 0.95)),
        ("- chosen by less than 80 %", CIFAR10H.by, most, agreement < 0.8),
        ("without near-duplicates", CIFAIR.by, labels, ~human.duplicates),
        ("near-duplicates alone", CIFAIR.by, labels, human.duplicates),
        ("labels corrected by votes", CLEANLAB.by, human.corrected, everything),
    ]
    return list(_figures(predicted, labels, groups))


def render_figures(found: Iterable[LabelAccuracy]) -> str:
    """A line for each group: its name, images, accuracy, its 95 % interval and the accuracy of CIFAR-10's labels."""
    rows = ((one, *one.accuracy.ci95) for one in found)
    return "\n".join(
        f"{one.name:26} {one.n:6,} images  {one.accuracy.value:7.2%}  {low:7.2%} to {high:7.2%}  {one.given:7.2%}"
        for one, low, high in rows
    )


def _figures(
    predicted: Labels, labels: Labels, groups: list[tuple[str, str, Labels, Chosen]]
) -> Iterator[LabelAccuracy]:
    for name, source, truth, chosen in groups:
        chosen = chosen & (truth != NO_LABEL)
        n, right = int(chosen.sum()), int((predicted == truth)[chosen].sum())
        if n:
            accuracy = Interval(value=right / n, ci95=wilson(right, n))
            given = float((labels == truth)[chosen].mean())
            yield LabelAccuracy(name=name, source=source, n=n, accuracy=accuracy, given=given)


def read_human_labels(folder: Path, labels: Labels, *, download: bool) -> HumanLabels:
    """Read the three files in `folder`; with `download`, fetch those that are missing. labels: int64 [N], CIFAR-10's.

    Raises TrainingError when a file is missing, is not the published one, or does not fit `labels`.
    """

    def read(source: Source, parse: Callable[[bytes], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        content = _content(source, folder, download)
        try:
            return parse(content)
        except (ValueError, csv.Error) as error:
            raise TrainingError(f"{folder / source.name} is damaged: {_reason(error)}") from None

    return HumanLabels(
        read(CIFAR10H, lambda content: parse_shares(content, len(labels))),
        read(CIFAIR, lambda content: parse_duplicates(content, len(labels))),
        read(CLEANLAB, lambda content: parse_corrections(content, labels)),
    )


def parse_shares(content: bytes, images: int) -> Floats:
    """CIFAR-10H's file: float64 [images, 10], rows sum to 1. Raises ValueError for anything else."""
    # Not numpy.load, which also opens archives. A pickled array is refused.
    shares = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    if shares.shape != (images, len(CLASSES)) or shares.dtype != np.float64:
        raise ValueError(f"{shares.dtype} {list(shares.shape)} in place of float64 {[images, len(CLASSES)]}")
    if not (shares >= 0).all() or not np.allclose(shares.sum(1), 1):
        raise ValueError("the shares of an image must be from 0 to 1 and sum to 1")
    return shares


class _Duplicate(BaseModel):
    TestID: NonNegativeInt
    Judgment: Annotated[int, Field(ge=0, le=2)]


def parse_duplicates(content: bytes, images: int) -> Chosen:
    """ciFAIR's list: bool [images]. Raises ValueError or csv.Error for anything else."""
    rows = TypeAdapter(list[_Duplicate]).validate_python(list(csv.DictReader(io.StringIO(content.decode()))))
    listed = np.zeros(images, np.bool_)
    for row in rows:
        _check_image(row.TestID, images)
        listed[row.TestID] |= row.Judgment <= SAME_SHOT
    return listed


ClassId = Annotated[int, Field(ge=0, lt=len(CLASSES))]


class _Vote(BaseModel):
    id: NonNegativeInt
    given_original_label: ClassId
    our_guessed_label: ClassId
    mturk: dict[Literal["given", "guessed", "neither", "both"], NonNegativeInt]


def parse_corrections(content: bytes, labels: Labels) -> Labels:
    """`labels`, int64 [N], after cleanlab's votes: int64 [N], NO_LABEL where a vote does not leave one label.

    Raises ValueError for anything else than such votes, and for votes on other labels than these.
    """
    corrected = labels.copy()
    for vote in TypeAdapter(list[_Vote]).validate_json(content):
        _check_image(vote.id, len(labels))
        if vote.given_original_label != labels[vote.id]:
            raise ValueError(f"image {vote.id} has label {labels[vote.id]}, not {vote.given_original_label}")
        most = max(vote.mturk.values(), default=0)
        winners = [choice for choice, votes in vote.mturk.items() if votes == most]
        if winners == ["guessed"]:
            corrected[vote.id] = vote.our_guessed_label
        elif winners != ["given"]:
            corrected[vote.id] = NO_LABEL
    return corrected


def _check_image(index: int, images: int) -> None:
    if index >= images:
        raise ValueError(f"there is no image {index}: the test set has {images:,}")


def _content(source: Source, folder: Path, download: bool) -> bytes:
    path = folder / source.name
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if not download:
            raise TrainingError(f"{path} is missing: --labels names its folder, --download fetches it") from None
        content = _fetch(source)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise TrainingError(f"cannot read {path} ({error.strerror}): --labels names its folder") from None
    if not _is_published(content, source):
        raise TrainingError(f"{path} is not the published file: remove it, and --download fetches {source.url}")
    return content


def _fetch(source: Source) -> bytes:
    try:
        with urllib.request.urlopen(source.url, timeout=TIMEOUT) as answer:  # noqa: S310  a Source's own
            content: bytes = answer.read(LARGEST)
    except (OSError, HTTPException) as error:
        raise TrainingError(
            f"cannot download {source.url} ({error}): --labels may name a folder that holds {source.name}"
        ) from None
    if not _is_published(content, source):
        raise TrainingError(f"{source.url} is not the file that was published: its sha256 is not {source.sha256}")
    return content


def _is_published(content: bytes, source: Source) -> bool:
    return sha256(content) == source.sha256


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
    return str(error).splitlines()[0]
