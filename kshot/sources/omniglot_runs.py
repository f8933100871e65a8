"""The 20 official one-shot runs on Omniglot, on which people and programs have been compared."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kshot import objectives
from kshot.annotations import PositiveInt
from kshot.data import library
from kshot.data.dataset import ImageDataset
from kshot.data.library.archives import opened_zip
from kshot.sources.omniglot import read_drawing
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Split, Task, one_hot

RUNS, WAYS = 20, 20


def omniglot_runs(path: Path | str | None = None, *, size: PositiveInt = 28) -> OmniglotRuns:
    """20 tasks of one alphabet each: 20 new characters from one drawing each, and a drawing by another person of each.

    They form the split "test"; there are no others. The alphabets are those of `images_evaluation`, so a model must not
    be trained on them, as ensured by `omniglot(background_only=True)`.

    Labels are the numbers of the training drawings, `class01` … `class20`.

    Args:
        path: the zip, `all_runs.zip`; by default `official/all_runs.zip` in the library's Omniglot.
        size: width and height of a drawing in pixels, resized as by `omniglot`.

    Raises:
        ValueError: the zip is missing or damaged, or a run in it does not consist of 20 drawings for 20 others.

    Example:
        >>> omniglot_runs().task("test", 19).support.inputs.shape  # doctest: +SKIP
        torch.Size([20, 1, 28, 28])

    References:
        Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic program induction, Science
        350, 2015; The Omniglot challenge: a 3-year progress report, arXiv:1902.03477, section 3: people err in 4.5 %
        of the trials, Bayesian Program Learning in 3.3 %.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    path = library.find("omniglot") / "official" / "all_runs.zip" if path is None else Path(path)
    if not path.is_file():
        raise ValueError(
            f"there is no file {path}; get all_runs.zip from github.com/brendenlake/omniglot, folder "
            "python/one-shot-classification, and put it there, or fetch it by `kshot data add omniglot`"
        )
    with opened_zip(path) as archive:
        runs = [_run(archive, path, f"run{number:02}", size) for number in range(1, RUNS + 1)]
    return OmniglotRuns(*map(np.stack, zip(*runs)))


class OmniglotRuns(TaskSource):
    """Tasks of `omniglot_runs`.

    Args:
        images: uint8 (runs, 40, size, size), the 20 of the support first.
        labels: int (runs, 20), the class of each query image.
    """

    objective = objectives.classification
    seed = 0

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._examples, self._labels = ImageDataset(images.reshape(-1, 1, *images.shape[2:])), labels

    def task(self, split: Split, index: int) -> Task:
        if split != "test":
            raise ValueError(f"the official runs are test tasks: there are no {split} tasks; train on omniglot()")
        if not 0 <= index < RUNS:
            raise ValueError(f"there are {RUNS} official runs, 0 … {RUNS - 1}; task {index} was asked for")
        inputs = self._examples.take(2 * WAYS * index + np.arange(2 * WAYS).reshape(2, WAYS))
        labels = torch.arange(WAYS), torch.from_numpy(self._labels[index])
        return Task(*(Batch(part, one_hot(of_part, WAYS), torch.ones(WAYS)) for part, of_part in zip(inputs, labels)))

    def describe(self) -> dict[str, Any]:
        about = {"source": "the official one-shot runs of omniglot", "ways": WAYS, "shots": 1, "queries": 1}
        return about | {"seed": self.seed, "image_size": list(self._examples.images.shape[1:])}

    def num_tasks(self, split: Split) -> int | None:
        return RUNS if split == "test" else None


def _run(archive: zipfile.ZipFile, path: Path, run: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The images (40, size, size) of a run, training images first, and the class (20,) of each test image."""
    try:
        lines = archive.read(f"{run}/class_labels.txt").decode().splitlines()
        pairs = [tuple(line.split()) for line in lines if line.strip()]
        training = [f"{run}/training/class{number:02}.png" for number in range(1, WAYS + 1)]
        labels = np.array([training.index(answer) for _, answer in pairs])
        if sorted(labels) != list(range(WAYS)):
            raise ValueError(f"its answers are not the {WAYS} training drawings, each once")
        members = [*training, *(test for test, _ in pairs)]
        return np.stack([read_drawing(archive.read(name), f"{path}: {name}", size) for name in members]), labels
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {run} cannot be read ({error}); get all_runs.zip again") from error
