"""The gain from adapting a language model: bits per character on the rest of a text, compared with tuned fine-tuning.

    kshot run languages --out runs/languages
    OMP_NUM_THREADS=1 python benchmarks/language_models.py runs/languages [--tasks 200] [--val 20]

Scores the following on the test tasks of a run on running text:

- the pretrained model, unadapted, and with only the last window of the support set as context;
- the pretrained model fine-tuned by heavy-ball or Adam steps, with rule, rate and number of steps chosen on validation
  tasks;
- n-grams of the support set alone, with back-off;
- dynamic evaluation of the pretrained model with Adam, its rate chosen on validation tasks: the starting point of a run
  of `dynamic_evaluation`;
- the run's learner, also with less of the support set.

Differences are paired by task. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

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


class NGrams:
    r"""An n-gram model with Witten-Bell smoothing, estimated from counts.

    $$ p_n(x \mid h) = \frac{c(hx) + u(h)\, p_{n-1}(x \mid h')}{c(h) + u(h)} $$

    where $u(h)$ is the number of distinct symbols seen after the context $h$, and $h'$ is $h$ without its first symbol.
    """

    def __init__(self, windows: Tensor, targets: Tensor, symbols: int, order: int = 5) -> None:
        self.symbols, self.order = symbols, order
        self.counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for context, symbol in self._positions(windows, targets):
            for start in range(len(context) + 1):
                self.counts[context[start:]][symbol] += 1

    def bits(self, windows: Tensor, targets: Tensor) -> float:
        """Mean bits per symbol."""
        probabilities = [self._probability(context, symbol) for context, symbol in self._positions(windows, targets)]
        return -sum(map(math.log2, probabilities)) / len(probabilities)

    def _positions(self, windows: Tensor, targets: Tensor) -> list[tuple[tuple[int, ...], int]]:
        return [
            (tuple(window[max(0, position + 2 - self.order) : position + 1]), symbol)
            for window, following in zip(windows.tolist(), targets.tolist())
            for position, symbol in enumerate(following)
            if symbol >= 0
        ]

    def _probability(self, context: tuple[int, ...], symbol: int) -> float:
        probability = 1 / self.symbols
        for start in range(len(context), -1, -1):
            seen = self.counts.get(context[start:])
            if seen:
                probability = (seen[symbol] + len(seen) * probability) / (seen.total() + len(seen))
        return probability


def ngram_bits(source: TaskSource, symbols: int, num_tasks: int) -> list[float]:
    """Bits per symbol of n-grams for each task."""
    bits = []
    for index in range(num_tasks):
        support, query = source.task("test", index)
        bits.append(NGrams(support.inputs, support.targets, symbols).bits(query.inputs, query.targets))
    return bits


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
        f"{run.spec.learner.kind}, meta-trained": run.learner,
    }
    scores = {}
    for name, learner in rows.items():
        evaluated = evaluate(learner, source, split="test", num_tasks=options.tasks, audit=False)
        scores[name] = evaluated.per_task[METRIC]
    scores["n-grams of the support set alone"] = ngram_bits(source, run.shapes["symbols"], options.tasks)
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
