"""CIFAR-10 in Hugging Face's form, from a server of this test. Batches have four images here."""

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet as arrow

from tests.training.data.test_archive import Server
from tests.training.tiny import make_images
from training.data import cifar10, parquet
from training.data.cifar10 import load
from training.errors import TrainingError

IMAGES = make_images(20, seed=1)
ORDER = [3, 2, 1, 4, 0]  # of the batches in the file


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


PNGS = [encoded(pixels) for pixels in IMAGES.images.numpy()]
ROWS = [4 * batch + row for batch in ORDER for row in range(4)]


def written(images: Sequence[object], labels: Sequence[object], **more: Any) -> bytes:
    """The parquet file of `images`, bytes, and labels, in this order."""
    out = io.BytesIO()
    columns: dict[str, object] = {"img": [{"bytes": one, "path": None} for one in images], "label": labels}
    arrow.write_table(pyarrow.table(columns | more), out)
    return out.getvalue()


def changed(place: int, image: bytes | None) -> bytes:
    images: list[object] = [*(PNGS[row] for row in ROWS)]
    images[place] = image
    return written(images, IMAGES.labels[ROWS].tolist())


WHOLE = changed(0, PNGS[ROWS[0]])


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other address, and small files."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(cifar10.ARCHIVE.variable, raising=False)
    monkeypatch.setattr(cifar10, "ARCHIVE", replace(cifar10.ARCHIVE, mirrors=()))
    monkeypatch.setattr(parquet, "BATCH", 4)
    digests = tuple(
        parquet.digest(IMAGES.images[first : first + 4].numpy(), IMAGES.labels[first : first + 4].numpy())
        for first in range(0, 20, 4)
    )
    monkeypatch.setattr(parquet, "TRAIN", replace(parquet.TRAIN, size=len(WHOLE), digests=digests))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(WHOLE) as running:
        yield running


@pytest.mark.parametrize("behaviour", ["ranges", "plain", "breaks"])
def test_what_no_address_of_the_archive_has_comes_from_the_hub_in_the_official_order(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    monkeypatch.setenv(parquet.HUB_VARIABLE, server.address(behaviour))
    assert load(tmp_path, train=True, download=True).digest() == IMAGES.digest()
    assert [path.name for path in tmp_path.iterdir()] == [parquet.TRAIN.name]
    monkeypatch.setenv(parquet.HUB_VARIABLE, "nowhere")
    assert load(tmp_path, train=True, download=False).digest() == IMAGES.digest()


@pytest.mark.parametrize("begun", [WHOLE[:100], WHOLE], ids=["a part", "all"])
def test_a_download_that_was_cut_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setenv(parquet.HUB_VARIABLE, server.address("ranges"))
    (tmp_path / f"{parquet.TRAIN.name}.part").write_bytes(begun)
    assert load(tmp_path, train=True, download=True).digest() == IMAGES.digest()
    assert server.asked == [("ranges", f"bytes={len(begun)}-")]


@pytest.mark.parametrize(
    ("behaviour", "said"), [("other", "another file"), ("missing", "HTTP 404"), ("always_breaks", "connection broke")]
)
def test_without_the_official_pixels_one_line_tells_why(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, said: str
) -> None:
    monkeypatch.setenv(parquet.HUB_VARIABLE, server.address(behaviour))
    with pytest.raises(TrainingError, match=f"^CIFAR-10 cannot be downloaded .*{said}.*: put cifar-10-") as error:
        load(tmp_path, train=True, download=True)
    assert "\n" not in str(error.value)


def test_an_address_of_the_environment_is_the_only_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(parquet.HUB_VARIABLE, server.address("ranges"))
    monkeypatch.setenv(cifar10.ARCHIVE.variable, server.address("missing"))
    with pytest.raises(TrainingError, match="HTTP 404"):
        load(tmp_path, train=True, download=True)
    assert server.asked == [("missing", None)]


def test_a_missing_package_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = r"pip install -e '\.\[parquet\]'"
    with pytest.raises(TrainingError, match=said):
        load(tmp_path, train=True, download=True)
    (tmp_path / parquet.TRAIN.name).write_bytes(WHOLE)
    with pytest.raises(TrainingError, match=said):
        load(tmp_path, train=True, download=False)


LABELS = IMAGES.labels[ROWS].tolist()
SWAPPED = [ROWS[1], ROWS[0], *ROWS[2:]]
HOSTILE = {
    "a pixel": (changed(7, encoded(IMAGES.images[ROWS[7]].numpy() ^ np.uint8(1))), "other pixels or labels"),
    "another label": (written([PNGS[row] for row in ROWS], [*LABELS[:-1], 11]), "other pixels or labels"),
    "rows that changed places": (
        written([PNGS[row] for row in SWAPPED], IMAGES.labels[SWAPPED].tolist()),
        "other pixels or labels",
    ),
    "the same batch five times": (
        written([PNGS[row] for row in ROWS[:4]] * 5, LABELS[:4] * 5),
        "other pixels or labels",
    ),
    "a large image": (changed(3, encoded(np.zeros((5000, 5000), np.uint8))), "an image of 5,000 x 5,000 pixels, L"),
    "no image": (changed(3, b"text"), "cannot be used"),
    "nothing": (changed(3, None), "a row without an image"),
    "too few rows": (written(PNGS[:19], LABELS[:19]), "19 rows, not 20"),
    "words for labels": (written(PNGS, ["cat"] * 20), ""),
    "labels that are missing": (written(PNGS, [None, *LABELS[1:]]), ""),
    "no column of labels": (written(PNGS, LABELS).replace(b"label", b"lapel"), ""),
    "images that are words": (written(PNGS, LABELS, img=["cat"] * 20), ""),
    "a cut file": (WHOLE[:-100], ""),
    "no parquet": (b"<html>", ""),
    "an empty file": (b"", ""),
}


@pytest.mark.parametrize(("content", "said"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_with_anything_else_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / parquet.TRAIN.name).write_bytes(content)
    with pytest.raises(TrainingError, match=f"does not hold CIFAR-10's training images .*{said}") as error:
        load(tmp_path, train=True, download=False)
    assert "\n" not in str(error.value)


def test_content_beyond_the_bound_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MOST_UNPACKED", 1000)
    (tmp_path / parquet.TRAIN.name).write_bytes(WHOLE)
    with pytest.raises(TrainingError, match="more than 1,000 bytes of content"):
        load(tmp_path, train=True, download=False)
