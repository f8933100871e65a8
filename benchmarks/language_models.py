"""What adapting a language model is worth: bits per character on the rest of a text, beside fine-tuning at its best.

    kshot run languages --out runs/languages
    OMP_NUM_THREADS=1 python benchmarks/language_models.py runs/languages [--tasks 200] [--val 20]

Of a run on running text it scores, on the same test tasks:

- the pretrained model as it is, and with the last window of the support as context alone;
- the pretrained model fine-tuned, by the best of plain, heavy-ball and Adam steps, of their rates and of their number,
  chosen on validation tasks;
- n-grams of the support alone, with backing off;
- the pretrained model in dynamic evaluation with Adam, its rate chosen on validation tasks: what a run of
  `dynamic_evaluation` starts from;
- the run's learner, and what it does with less of the support.

Differences are paired by task. A table in Markdown is printed.
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


def tuned(model: nn.Module, source: TaskSource, tasks: int) -> tuple[str, GradientLearner]:
    """Fine-tuning with the rule, the rate and the number of steps that are best on validation tasks."""
    found: dict[tuple[str, int], float] = {}
    for name, rule in RULES.items():
        learner = GradientLearner(model, source.objective, FirstOrder(rule, max(STEPS))).eval()
        totals = Counter[int]()
        for index in range(tasks):
            task = source.task("val", index)
            with torch.no_grad():
                way = learner.trajectory(task.support)
                for steps in STEPS:
                    told = learner.predict(way[steps], task.query.inputs)
                    totals[steps] += float(source.objective.metrics(told, task.query)[METRIC])
        found |= {(name, steps): total / tasks for steps, total in totals.items()}
    (name, steps), best = min(found.items(), key=lambda item: (math.isnan(item[1]), item[1]))
    about = f"fine-tuned ({name}, {steps} steps; {best:.3f} on {tasks} validation tasks)"
    return about, GradientLearner(model, source.objective, FirstOrder(RULES[name], steps))


def read_along(model: nn.Module, source: TaskSource, tasks: int) -> tuple[str, kshot.Learner]:
    """Dynamic evaluation of a model that was not meta-trained, at the rate that is best on validation tasks."""
    learners = {
        rate: kshot.learners.dynamic_evaluation(model, inner_lr=rate, rule="adam", rates="one", passes=2)
        for rate in READING
    }
    found = {
        rate: evaluate(learner, source, split="val", tasks=tasks, audit=False).metrics[METRIC].mean
        for rate, learner in learners.items()
    }
    best = min(found, key=lambda rate: found[rate])
    return f"dynamic evaluation, not meta-trained (Adam, rate {best})", learners[best]


class NGrams:
    r"""n-grams of a text with Witten and Bell's backing off; counts alone, no network.

    $$ p_n(x \mid h) = \frac{c(hx) + u(h)\, p_{n-1}(x \mid h')}{c(h) + u(h)} $$

    with $u(h)$ the number of different symbols seen after the context $h$, and $h'$ it without its first symbol.
    """

    def __init__(self, windows: Tensor, targets: Tensor, symbols: int, order: int = 5) -> None:
        self.symbols, self.order = symbols, order
        self.counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for context, symbol in self._places(windows, targets):
            for start in range(len(context) + 1):
                self.counts[context[start:]][symbol] += 1

    def bits(self, windows: Tensor, targets: Tensor) -> float:
        """The mean of what each symbol takes."""
        chances = [self._chance(context, symbol) for context, symbol in self._places(windows, targets)]
        return -sum(map(math.log2, chances)) / len(chances)

    def _places(self, windows: Tensor, targets: Tensor) -> list[tuple[tuple[int, ...], int]]:
        return [
            (tuple(window[max(0, place + 2 - self.order) : place + 1]), symbol)
            for window, following in zip(windows.tolist(), targets.tolist())
            for place, symbol in enumerate(following)
            if symbol >= 0
        ]

    def _chance(self, context: tuple[int, ...], symbol: int) -> float:
        chance = 1 / self.symbols
        for start in range(len(context), -1, -1):
            seen = self.counts.get(context[start:])
            if seen:
                chance = (seen[symbol] + len(seen) * chance) / (seen.total() + len(seen))
        return chance


def of_counts(source: TaskSource, symbols: int, tasks: int) -> list[float]:
    """The bits of n-grams, task by task."""
    found = []
    for index in range(tasks):
        support, query = source.task("test", index)
        found.append(NGrams(support.inputs, support.targets, symbols).bits(query.inputs, query.targets))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run on source corpus, with pretraining")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--val", type=int, default=20)
    options = parser.parse_args()
    run = kshot.load(options.run)
    source = build_source(run.spec)
    model = build_model(run.spec, run.shapes, head=True)
    pretrained = pretrained_model(run.spec, model, source, RunFolder(options.run))
    if pretrained is None:
        raise SystemExit(f"{options.run} has no pretraining to fine-tune from")
    as_it_is = GradientLearner(pretrained, source.objective, FirstOrder(SGD(1.0), 0))
    reading = kshot.learners.dynamic_evaluation(pretrained, inner_lr=1.0, passes=0, causal_queries=False, rates="one")
    about, fine_tuned = tuned(pretrained, source, options.val)
    along, read = read_along(pretrained, source, options.val)
    rows = {
        "pretrained, as it is": as_it_is,
        "pretrained, a window of the support as context": reading,
        about: fine_tuned,
        along: read,
        f"{run.spec.learner.kind}, meta-trained": run.learner,
    }
    scores = {}
    for name, learner in rows.items():
        evaluated = evaluate(learner, source, split="test", tasks=options.tasks, audit=False)
        scores[name] = evaluated.per_task[METRIC]
    scores["n-grams of the support alone"] = of_counts(source, run.shapes["symbols"], options.tasks)
    ours, unadapted = list(scores)[len(rows) - 1], scores["pretrained, as it is"]
    print("| | bits per symbol | less than unadapted | the learner less it, paired |\n| --- | --- | --- | --- |")
    for name, own in scores.items():
        mean, base = interval(own), interval(unadapted)
        gap = "" if name == ours else "{0.mean:+.3f} ± {0.ci95:.3f}".format(difference([scores[ours]], [own]))
        print(f"| {name} | {mean.mean:.3f} ± {mean.ci95:.3f} | {1 - mean.mean / base.mean:.1%} | {gap} |")
    for count in (1, 2, 5):
        fewer = evaluate(run.learner, FewerShots(source, count), tasks=max(options.tasks // 3, 1), audit=False)
        print(f"the learner with {count} windows: {fewer.metrics[METRIC]}")
    print(f"{options.tasks} test tasks, episodes {evaluated.episodes_sha256[:16]}…, run {options.run}")


if __name__ == "__main__":
    main()
