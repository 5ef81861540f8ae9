from pathlib import Path

import pytest
import torch

from tests.training.conftest import TinyCIFAR10
from tests.training.tiny import make_images
from training.data import cifar10, parquet
from training.data.cifar10 import CLASSES, LabelledImages, load, split
from training.errors import TrainingError


def test_the_split_is_disjoint_complete_sorted_and_stratified(tiny_data: None) -> None:
    labels = make_images(70, seed=0).labels
    parts = split(labels, seed=0)
    indices = [parts.train, parts.select, parts.calibrate]
    assert torch.equal(torch.cat(indices).sort().values, torch.arange(70))
    for index, a_class in zip(indices, (3, 2, 2), strict=True):
        assert torch.equal(index, index.sort().values)
        assert labels[index].bincount().tolist() == [a_class] * 10


def test_the_split_is_the_seed_s(tiny_data: None) -> None:
    labels = make_images(70, seed=0).labels
    first, again, other = (split(labels, seed) for seed in (5, 5, 6))
    assert torch.equal(first.select, again.select) and torch.equal(first.calibrate, again.calibrate)
    assert not torch.equal(first.select, other.select)


def test_too_few_images_cannot_be_split(tiny_data: None) -> None:
    with pytest.raises(TrainingError, match="class airplane has 4 images: more than 4 are needed"):
        split(make_images(40, seed=0).labels, seed=0)


def test_the_digest_covers_pixels_and_labels() -> None:
    images = make_images(10, seed=0)
    pixels, labels = images.images.clone(), images.labels.clone()
    assert LabelledImages(pixels, labels).digest() == images.digest()
    pixels[3, 4, 5, 0] += 1
    labels[7] += 1
    assert (
        len({images.digest(), LabelledImages(pixels, images.labels).digest(), images._replace(labels=labels).digest()})
        == 3
    )


def test_missing_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"missing or damaged.*--data-dir must hold cifar-10-batches-py") as error:
        load(tmp_path, train=True, download=False)
    assert "\n" not in str(error.value)


class Unpacked(TinyCIFAR10):
    """There are files once something was unpacked."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        assert not download  # by torchvision, which knows one address
        if not (Path(root) / "files").exists():
            raise RuntimeError("Dataset not found or corrupted. You can ...")
        super().__init__(root, train, download)


@pytest.mark.parametrize("there", [True, False])
def test_what_is_missing_is_unpacked_from_the_archive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    def unpack(folder: Path, *, download: bool) -> bool:
        if there or download:
            (folder / "files").write_text(str(download))
        return there or download

    monkeypatch.setattr(cifar10, "CIFAR10", Unpacked)
    monkeypatch.setattr(cifar10, "unpack", unpack)
    assert len(load(tmp_path, train=False, download=True).labels) == 20
    assert (tmp_path / "files").read_text() == str(not there)
    monkeypatch.setattr(cifar10, "unpack", lambda *_, **__: pytest.fail("it was there"))
    assert len(load(tmp_path, train=True, download=True).labels) == 70


def test_a_folder_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cifar10, "CIFAR10", Unpacked)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"missing or damaged .*or be writable with --download") as error:
        load(tmp_path / "file" / "data", train=True, download=True)
    assert "\n" not in str(error.value)


@pytest.mark.data
def test_the_real_data_have_their_split(cifar10_dir: Path) -> None:
    images = load(cifar10_dir, train=True, download=False)
    assert images.images.shape == (50_000, 32, 32, 3) and images.images.dtype == torch.uint8
    assert images.labels.bincount().tolist() == [5000] * 10
    parts = split(images.labels, seed=0)
    assert [len(part) for part in (parts.train, parts.select, parts.calibrate)] == [45_000, 2500, 2500]
    # The split that the shipped bundle was made with; another NumPy must not draw another.
    assert images.take(parts.select).digest() == "516cfa6d30234edbfbc3c8c9ab1657989232bd4d5a3bfc328551950524469715"
    # Of every form that the images are downloaded in.
    batches = zip(*(part.numpy().reshape(5, parquet.BATCH, *part.shape[1:]) for part in images), strict=True)
    assert tuple(parquet.digest(*batch) for batch in batches) == parquet.TRAIN.digests
    test = load(cifar10_dir, train=False, download=False)
    assert parquet.digest(test.images.numpy(), test.labels.numpy()) == parquet.TEST.digests[0]
    assert len(test.images) == 10_000
    assert CLASSES[test.labels[0]] == "cat"  # a cat leads the test set


@pytest.mark.data
def test_a_changed_byte_is_refused_before_it_is_unpickled(cifar10_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (cifar10_dir / folder.name).iterdir():
        (folder / file.name).symlink_to(file.resolve())
    damaged = folder / "data_batch_3"
    content = bytearray(damaged.read_bytes())
    content[12345] ^= 1
    damaged.unlink()
    damaged.write_bytes(content)
    with pytest.raises(TrainingError, match="missing or damaged"):
        load(tmp_path, train=True, download=False)
