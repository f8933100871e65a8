"""The gain from adapting a language model: bits per character on the rest of a text, compared with tuned fine-tuning.

    kshot run languages --out runs/languages
    OMP_NUM_THREADS=1 python benchmarks/language_models.py runs/languages [--tasks 200] [--val 20]

Scores the following on the test tasks of a run on running text:

- the pretrained model, unadapted, and with only the last window of the support set as context;
- the pretrained model fine-tuned by heavy-ball or Adam steps, with rule, rate and number of steps chosen on validation
  tasks;
- n-grams with back-off of the training texts and the support set, tuned on validation tasks, also counting on in the
  query; and the bits that LZMA needs for the query;
- dynamic evaluation of the pretrained model with Adam, its rate chosen on validation tasks: the starting point of a run
  of `dynamic_evaluation`;
- the run's learner, also with less of the support set.

Differences are paired by task. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import lzma
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

import kshot
from kshot.app.build import build_model, build_source
from kshot.app.folder import RunFolder
from kshot.app.run import pretrained_model
from kshot.evaluation.evaluate import evaluate
from kshot.evaluation.intervals import difference, interval
from kshot.evaluation.shots import FewerShots
from kshot.inner.rules import SGD, Adam, UpdateRule
from kshot.inner.solvers import FirstOrder
from kshot.learners import GradientLearner
from kshot.learners.baselines.language import ngram_candidates, training_texts
from kshot.tasks.source import TaskSource

METRIC = "bits_per_character"
STEPS = (2, 5, 10, 20)
READING = (0.001, 0.002, 0.003)
RULES: dict[str, UpdateRule] = {
    **{f"heavy ball 0.9, rate {rate}": SGD(rate, momentum=0.9) for rate in (0.1, 0.2)},
    **{f"Adam, rate {rate}": Adam(rate) for rate in (0.001, 0.003, 0.005, 0.01)},
}


def tuned(model: nn.Module, source: TaskSource, num_tasks: int) -> tuple[str, GradientLearner]:
    """Fine-tuning with the rule, rate and number of steps that are best on validation tasks, and its description."""
    values: dict[tuple[str, int], float] = {}
    for name, rule in RULES.items():
        learner = GradientLearner(model, source.objective, FirstOrder(rule, max(STEPS))).eval()
        totals = Counter[int]()
        for index in range(num_tasks):
            task = source.task("val", index)
            with torch.no_grad():
                trajectory = learner.trajectory(task.support)
                for steps in STEPS:
                    prediction = learner.predict(trajectory[steps], task.query.inputs)
                    totals[steps] += float(source.objective.metrics(prediction, task.query)[METRIC])
        values |= {(name, steps): total / num_tasks for steps, total in totals.items()}
    (name, steps), best = min(values.items(), key=lambda item: (math.isnan(item[1]), item[1]))
    description = f"fine-tuned ({name}, {steps} steps; {best:.3f} on {num_tasks} validation tasks)"
    return description, GradientLearner(model, source.objective, FirstOrder(RULES[name], steps))


def tuned_dynamic_evaluation(model: nn.Module, source: TaskSource, num_tasks: int) -> tuple[str, kshot.Learner]:
    """Dynamic evaluation without meta-training, at the rate that is best on validation tasks, and its description."""
    learners = {
        rate: kshot.learners.dynamic_evaluation(model, inner_lr=rate, rule="adam", rates="one", passes=2)
        for rate in READING
    }
    values = {
        rate: evaluate(learner, source, split="val", num_tasks=num_tasks, audit=False).metrics[METRIC].mean
        for rate, learner in learners.items()
    }
    best = min(values, key=lambda rate: values[rate])
    return f"dynamic evaluation, not meta-trained (Adam, rate {best})", learners[best]


def tuned_ngrams(source: TaskSource, num_tasks: int, *, causal: bool) -> tuple[str, kshot.Learner]:
    """N-grams with the settings that are best on validation tasks, and their description."""
    candidates = ngram_candidates(source, causal=causal)
    values = [
        evaluate(each, source, split="val", num_tasks=num_tasks, audit=False).metrics[METRIC].mean
        for each in candidates
    ]
    best: Any = candidates[values.index(min(values))]
    name = "n-grams that go on counting in the query" if causal else "n-grams"
    return f"{name} (order {best.order}, share {best.share}, escape {best.escape})", best


def lzma_bits(source: TaskSource, num_tasks: int) -> list[float]:
    """Bits per symbol by which the query makes the compressed support longer, after some text of training, per task."""
    before = b"".join(_as_bytes(text) for text in training_texts(source))[-(1 << 18) :]
    bits = []
    for index in range(num_tasks):
        support, query = map(_as_bytes, source.task("test", index))
        sizes = [len(lzma.compress(before + text, preset=9)) for text in (support, support + query)]
        bits.append(8 * (sizes[1] - sizes[0]) / max(len(query), 1))
    return bits


def _as_bytes(batch: kshot.Batch) -> bytes:
    """The symbols of a text, a byte each, for vocabularies of up to 258."""
    symbols = batch.targets[(batch.targets >= 0) & (batch.weight > 0)[:, None]]
    return bytes((symbols - 2).clamp(0, 255).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run with source corpus and pretraining")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--val", type=int, default=20)
    options = parser.parse_args()
    run = kshot.load(options.run)
    source = build_source(run.spec)
    model = build_model(run.spec, run.shapes, head=True)
    pretrained = pretrained_model(run.spec, model, source, RunFolder(options.run))
    if pretrained is None:
        raise SystemExit(f"{options.run} has no pretraining; this benchmark needs a pretrained model")
    unadapted_learner = GradientLearner(pretrained, source.objective, FirstOrder(SGD(1.0), 0))
    with_context = kshot.learners.dynamic_evaluation(
        pretrained, inner_lr=1.0, passes=0, causal_queries=False, rates="one"
    )
    description, fine_tuned = tuned(pretrained, source, options.val)
    description_dynamic, dynamic = tuned_dynamic_evaluation(pretrained, source, options.val)
    rows = {
        "pretrained, unadapted": unadapted_learner,
        "pretrained, last support window as context": with_context,
        description: fine_tuned,
        description_dynamic: dynamic,
        **dict(tuned_ngrams(source, options.val, causal=causal) for causal in (False, True)),
        f"{run.spec.learner.kind}, meta-trained": run.learner,
    }
    scores = {}
    for name, learner in rows.items():
        evaluated = evaluate(learner, source, split="test", num_tasks=options.tasks, audit=False)
        scores[name] = evaluated.per_task[METRIC]
    if run.shapes["symbols"] <= 258:
        scores["LZMA"] = lzma_bits(source, options.tasks)
    ours, unadapted = list(scores)[len(rows) - 1], scores["pretrained, unadapted"]
    print("| | bits per symbol | reduction from unadapted | learner − baseline (paired) |\n| --- | --- | --- | --- |")
    for name, bits in scores.items():
        mean, base = interval(bits), interval(unadapted)
        gap = "" if name == ours else "{0.mean:+.3f} ± {0.ci95:.3f}".format(difference([scores[ours]], [bits]))
        print(f"| {name} | {mean.mean:.3f} ± {mean.ci95:.3f} | {1 - mean.mean / base.mean:.1%} | {gap} |")
    for count in (1, 2, 5):
        fewer = evaluate(run.learner, FewerShots(source, count), num_tasks=max(options.tasks // 3, 1), audit=False)
        print(f"learner with {count} support windows: {fewer.metrics[METRIC]}")
    print(f"{options.tasks} test tasks, episodes {evaluated.episodes_sha256[:16]}…, run {options.run}")


if __name__ == "__main__":
    main()
