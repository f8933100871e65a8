"""Tasks per second on Omniglot, 5-way 1-shot with 15 queries: `ClassTasks.stack` against one PNG file per item; and the
share of sampling in a meta-step.

    KSHOT_DATA=FOLDER python benchmarks/sampling.py [--seconds 2] [--rounds 5]

learn2learn does not install on current Python, so `PerItem` is a re-implementation of its `TaskDataset`: the chain
NWays, KShots, LoadData, RemapLabels, ConsecutiveLabels over a list of items, each of which is opened as a PNG file,
inverted, scaled to 28×28 and converted to a tensor on access, as its `FullOmniglot` does; then one collate. The files
are in the cache of the operating system. The methods are interleaved; results are medians.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import kshot
from kshot.data import library
from kshot.training.step import meta_gradient

WAYS, SHOTS, QUERIES = 5, 1, 15
Item = tuple[int, list[Callable]]
"""An item of a task description: the index of an example, and its transforms, the first of which loads it."""


class Drawings:
    """A data set of PNG files, with the label tables of a `MetaDataset`."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.rglob("*.png"))
        characters = sorted({file.parent for file in self.files})
        number = {character: label for label, character in enumerate(characters)}
        self.label = [number[file.parent] for file in self.files]
        self.members: dict[int, list[int]] = defaultdict(list)
        for index, label in enumerate(self.label):
            self.members[label].append(index)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.open(self.files[index]).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
        return 1 - torch.from_numpy(np.array(image)).to(torch.float32).div_(255)[None], self.label[index]


class PerItem:
    """Samples tasks as `TaskDataset` does."""

    def __init__(self, drawings: Drawings, ways: int, shots: int) -> None:
        self.drawings = drawings
        self.chain = [self.n_ways(ways), self.k_shots(shots), self.load_data, self.remap_labels, self.consecutive]

    def sample(self) -> tuple[Tensor, Tensor]:
        description: list[Item] = []
        for transform in self.chain:
            description = transform(description)
        data = []
        for index, transforms in description:
            item = index
            for transform in transforms:
                item = transform(item)
            data.append(item)
        images, labels = zip(*data)
        return torch.stack(images), torch.tensor(labels)

    def n_ways(self, ways: int) -> Callable:
        def transform(description: list[Item]) -> list[Item]:
            chosen = random.sample(list(self.drawings.members), ways)
            return [(index, []) for label in chosen for index in self.drawings.members[label]]

        return transform

    def k_shots(self, shots: int) -> Callable:
        def transform(description: list[Item]) -> list[Item]:
            by_label = defaultdict(list)
            for item in description:
                by_label[self.drawings.label[item[0]]].append(item)
            return [item for items in by_label.values() for item in random.sample(items, shots)]

        return transform

    def load_data(self, description: list[Item]) -> list[Item]:
        for _, transforms in description:
            transforms.append(lambda index: self.drawings[index])
        return description

    def remap_labels(self, description: list[Item]) -> list[Item]:
        labels = list({self.drawings.label[index] for index, _ in description})
        random.shuffle(labels)
        new = {label: number for number, label in enumerate(labels)}
        for _, transforms in description:
            transforms.append(lambda item: (item[0], new[item[1]]))
        return description

    def consecutive(self, description: list[Item]) -> list[Item]:
        return sorted(description, key=lambda item: self.drawings.label[item[0]])


def seconds_of(work: Callable[[int], object], seconds: float) -> float:
    """Seconds per call of `work`, measured over about `seconds`."""
    started, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        work(calls)
        calls += 1
    return elapsed / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    source = kshot.sources.omniglot(ways=WAYS, shots=SHOTS, queries=QUERIES)
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(library.find("omniglot") / "images_background.zip") as archive:
            archive.extractall(folder)
        per_item = PerItem(Drawings(Path(folder)), WAYS, SHOTS + QUERIES)
        methods: dict[str, Callable[[int], object]] = {
            "one PNG per item": lambda call: per_item.sample(),
            "kshot, task by task": lambda call: source.task("train", call),
            "kshot, stacks of 16": lambda call: source.stack("train", range(16 * call, 16 * (call + 1))),
        }
        rates: dict[str, list[float]] = {name: [] for name in methods}
        for number in range(options.rounds + 1):
            for name, work in methods.items():
                seconds_per_task = seconds_of(work, options.seconds if number else 0.2) / (16 if "16" in name else 1)
                if number:
                    rates[name].append(1 / seconds_per_task)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {options.rounds} rounds")
    slow = rates["one PNG per item"]
    for name, values in rates.items():
        ratio = statistics.median(rate / other for rate, other in zip(values, slow))
        print(f"{name:<20} {statistics.median(values):9,.0f} tasks/s   {ratio:7.1f} ×")
    for kind in ("pool", "stride"):
        learner = kshot.maml(kshot.models.conv4(1, WAYS, downsample=kind), inner_lr=0.1)
        shares = []
        for number in range(options.rounds + 1):
            started = time.perf_counter()
            tasks = source.stack("train", range(4 * number, 4 * (number + 1)))
            sampled = time.perf_counter()
            meta_gradient(learner, tasks, "loop")
            if number:
                shares.append((sampled - started) / (time.perf_counter() - started))
        share = statistics.median(shares)
        print(f"share of sampling in a meta-step of 4 tasks, Conv4-64 {kind}, 1 inner step: {share:.2%}  (bound 5 %)")


if __name__ == "__main__":
    main()
