"""Measure the shipped model on photographs: accuracy for one and three views, and abstention.

python tests/benchmarks/training/photos.py --photos PHOTOS --data-dir data

PHOTOS/in/<label>/ has photographs of the classes, PHOTOS/out/ of other objects. In addition, the script makes synthetic
photographs from the selection split, with a fixed seed: each image is enlarged, placed off-centre on another, blurred
image, blurred itself, and compressed.
"""

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from app.imaging.decode import EncodedImage
from app.inference.answers import rules_of
from app.inference.sessions import load_session
from app.settings import Settings
from training.data.cifar10 import load

SIDE = 224
Answers = tuple[np.ndarray, np.ndarray]  # probabilities [N, classes], scores [N]


def synthetic_photos(images: np.ndarray, seed: int) -> Iterator[bytes]:
    """One JPEG, SIDE pixels square, for each of the images, uint8 RGB [N, 32, 32, 3]."""
    random = np.random.default_rng(seed)
    for image in images:
        around = Image.fromarray(images[random.integers(len(images))]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture = around.filter(ImageFilter.GaussianBlur(6))
        size = round(SIDE * random.uniform(0.6, 0.95))
        subject = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
        x, y = (round(place) for place in random.uniform(0.2, 0.8, 2) * (SIDE - size))
        picture.paste(subject, (x, y))
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0, 3)))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=int(random.integers(40, 90)))
        yield out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    options = parser.parse_args()
    bundle, session = load_session(Settings())
    manifest = bundle.manifest
    rules = rules_of(manifest)["photographs"]
    size = manifest.photographs or manifest.input
    limit = rules.ood_threshold
    assert limit is not None

    def answers(files: list[bytes], views: int) -> Answers:
        values, scores = [], []
        for content in files:
            outputs = session.run(EncodedImage.identify(content, 10**9).thumbnails(views, size.height, size.width))
            found = rules.classify(outputs, queue_seconds=0, inference_seconds=0)
            assert found.ood_score is not None
            values.append(found.probabilities)
            scores.append(found.ood_score)
        return np.array(values), np.array(scores)

    selection = json.loads(bundle.read("split.json"))["select"]
    chosen = load(options.data_dir, train=True, download=False).take(torch.tensor(selection))
    known = {path: manifest.classes.index(path.parent.name) for path in sorted(options.photos.glob("in/*/*"))}
    sets = {
        "photographs": ([path.read_bytes() for path in known], np.array(list(known.values()))),
        "synthetic": (list(synthetic_photos(chosen.images.numpy(), seed=0)), chosen.labels.numpy()),
    }
    unknown = [path.read_bytes() for path in sorted((options.photos / "out").iterdir())]
    print("| images | views | accuracy | abstained | accuracy of the rest |\n| --- | --- | --- | --- | --- |")
    for views in (1, 3):
        for name, (files, labels) in sets.items():
            values, scores = answers(files, views)
            right, kept = values.argmax(1) == labels, scores <= limit
            print(f"| {name}, {len(files):,} | {views} | {right.mean():.1%} | {1 - kept.mean():.1%} ", end="")
            print(f"| {right[kept].mean():.1%} |", flush=True)
            if name == "photographs":
                others, other_scores = answers(unknown, views)
                truth = np.repeat([0, 1], [len(files), len(unknown)])
                by_score = roc_auc_score(truth, np.concatenate([scores, other_scores]))
                by_softmax = roc_auc_score(truth, 1 - np.concatenate([values, others]).max(1))
                print(f"| other objects, {len(unknown)} | {views} | | {(other_scores > limit).mean():.1%} | |")
                print(
                    f"| ROC area, other objects against photographs | {views} | {by_score:.3f} by ood_score, ", end=""
                )
                print(f"{by_softmax:.3f} by largest probability | | |", flush=True)


if __name__ == "__main__":
    main()
