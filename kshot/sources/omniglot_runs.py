"""Lake's 20 one-shot runs on Omniglot: the test that people, and programs since, have been compared on."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kshot import objectives
from kshot.data import library
from kshot.data.dataset import ImageDataset
from kshot.data.library.archives import opened_zip
from kshot.sources.omniglot import read_drawing
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Split, Task, one_hot

RUNS, WAYS = 20, 20


class OmniglotRuns(TaskSource):
    """20 tasks of one alphabet each: 20 new characters from one drawing each, and a drawing of another person of each.

    They are the split "test", and there are no others. The alphabets are those of `images_evaluation`; a network that
    is judged by them has not seen those alphabets, as with `omniglot(background_only=True)`.

    Labels are the numbers of the training drawings, `class01` … `class20`.

    Args:
        path: the zip, `all_runs.zip`; by default `official/all_runs.zip` in the library's Omniglot.
        size: pixels of a drawing's side, scaled down as by `omniglot`.

    Raises:
        ValueError: the zip is missing or damaged, or a run in it is not 20 drawings for 20 others.

    Example:
        >>> omniglot_runs().task("test", 19).support.inputs.shape  # doctest: +SKIP
        torch.Size([20, 1, 28, 28])

    References:
        Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic program induction, Science
        350, 2015; The Omniglot challenge: a 3-year progress report, arXiv:1902.03477, section 3: people err in 4.5 %
        of the trials, Bayesian Program Learning in 3.3 %.
    """

    objective = objectives.classification
    seed = 0

    def __init__(self, path: Path | str | None = None, *, size: int = 28) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        self.path = library.find("omniglot") / "official" / "all_runs.zip" if path is None else Path(path)
        if not self.path.is_file():
            raise ValueError(
                f"there is no file {self.path}; get all_runs.zip from github.com/brendenlake/omniglot, folder "
                "python/one-shot-classification, and put it there, or fetch it by `kshot data add omniglot`"
            )
        with opened_zip(self.path) as archive:
            runs = [_run(archive, self.path, f"run{number:02}", size) for number in range(1, RUNS + 1)]
        images, self._labels = np.stack([images for images, _ in runs]), np.stack([labels for _, labels in runs])
        self._examples = ImageDataset(images.reshape(-1, 1, size, size))  # run by run, the 20 of the support first

    def task(self, split: Split, index: int) -> Task:
        if split != "test":
            raise ValueError(f"the official runs are a test: there are no {split} tasks; train on omniglot()")
        if not 0 <= index < RUNS:
            raise ValueError(f"there are {RUNS} official runs, 0 … {RUNS - 1}; task {index} was asked for")
        inputs = self._examples.take(2 * WAYS * index + np.arange(2 * WAYS).reshape(2, WAYS))
        labels = torch.arange(WAYS), torch.from_numpy(self._labels[index])
        return Task(*(Batch(part, one_hot(own, WAYS), torch.ones(WAYS)) for part, own in zip(inputs, labels)))

    def describe(self) -> dict[str, Any]:
        return {
            "source": "the official one-shot runs of omniglot",
            "ways": WAYS,
            "shots": 1,
            "queries": 1,
            "seed": self.seed,
            "image_size": list(self._examples.images.shape[1:]),
        }


omniglot_runs = OmniglotRuns  # sources are made by lower-case names throughout


def _run(archive: zipfile.ZipFile, path: Path, run: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A run's images (40, size, size), the training ones first, and the training number (20,) of each test image."""
    place = f"{path}: {run}"
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
        raise ValueError(f"{place} cannot be read ({error}); get all_runs.zip again") from error
