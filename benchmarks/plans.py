"""Choosing among plans of adapting, inside tasks: a mixture of unlike families of functions, and families held out.

    OMP_NUM_THREADS=1 python benchmarks/plans.py [--seeds 0 1 2] [--steps 1200] [--tasks 400] [--out runs/plans]
    OMP_NUM_THREADS=1 python benchmarks/plans.py --held-out [--seeds 0 1 2] [--steps 600] [--tasks 200]

Each task is a function of one number, drawn from one of six families: waves, lines, stairs, saw teeth, smooth and rough
random functions. 4 to 20 noisy points are the support set, 40 others the query. 14 plans are meta-trained together on
the mixture; what chooses among them is fitted to 1,000 other training tasks. The oracle takes the plan that is best on
half of the queries. All are judged on the other half. Seeds differ in weights, in training tasks and in test tasks.

Prints, over the test tasks of all seeds: the mean squared error; its paired difference to the best fixed plan ± 95 %
interval; the share of the gap from that plan to the oracle that is closed, with a bootstrap interval; and the mean
processor time to describe, choose, adapt and predict, on one thread. With `--held-out`, seed i leaves two of the six
families (pair i modulo 3) out of the training of plans and gate, and tests on each of them. Trained learners are kept
in `--out`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import kshot
from kshot import Learner, objectives
from kshot.evaluation.intervals import interval
from kshot.learner import evaluation_mode
from kshot.learners.baselines.functions import GaussianProcess
from kshot.learners.baselines.regressors import neighbours
from kshot.learners.baselines.simple import SupportMean
from kshot.learners.choosing.choose import Choosing
from kshot.tasks.mixture import mixture
from kshot.tasks.source import TaskSource, generator
from kshot.training.checkpoint import load_checkpoint, save_checkpoint
from kshot.types import Batch, Split, Task, Tree

NOISE, SHOTS, QUERIES = 0.1, (4, 20), 40
HALF = slice(QUERIES // 2), slice(QUERIES // 2, None)
PAIRS = (("waves", "stairs"), ("lines", "rough"), ("saws", "smooth"))
"""Families that are held out together."""
POLICIES = ("fixed", "cross_validated", "learned_choice", "learned_weights")

Curve = Callable[[np.ndarray], np.ndarray]


def wave(random: np.random.Generator) -> Curve:
    size, speed, phase = random.uniform(0.5, 2), random.uniform(0.5, 2.5), random.uniform(0, 2 * np.pi)
    return lambda x: size * np.sin(speed * x + phase)


def line(random: np.random.Generator) -> Curve:
    slope, level = random.normal(0, 0.4), random.normal(0, 0.5)
    return lambda x: level + slope * x


def stairs(random: np.random.Generator) -> Curve:
    edges = np.sort(random.uniform(-5, 5, random.integers(1, 5)))
    heights = random.normal(0, 1, len(edges) + 1)
    return lambda x: heights[np.searchsorted(edges, x)]


def saw(random: np.random.Generator) -> Curve:
    period, start, size = random.uniform(2, 5), random.uniform(0, 5), random.choice([-1, 1]) * random.uniform(1, 3)
    return lambda x: size * (((x + start) / period) % 1 - 0.5)


def random_function(width: float) -> Callable[[np.random.Generator], Curve]:
    """A Gaussian process with a Gaussian kernel, by 300 random Fourier features."""

    def draw(random: np.random.Generator) -> Curve:
        speed, phase = random.normal(0, 1 / width, 300), random.uniform(0, 2 * np.pi, 300)
        size = random.normal(0, np.sqrt(2 / 300), 300)
        return lambda x: np.cos(x[:, None] * speed + phase) @ size

    return draw


FAMILIES: dict[str, Callable[[np.random.Generator], Curve]] = {
    "waves": wave, "lines": line, "stairs": stairs, "saws": saw,
    "smooth": random_function(2.5), "rough": random_function(0.7),
}  # fmt: skip


@dataclass(eq=False)
class Functions(TaskSource):
    """Noisy points of the functions of a family."""

    family: str
    seed: int = 0
    objective = objectives.mse

    def task(self, split: Split, index: int) -> Task:
        random = generator(self.seed + 100 * list(FAMILIES).index(self.family), split, index)
        curve, shots = FAMILIES[self.family](random), random.integers(SHOTS[0], SHOTS[1] + 1)
        x = random.uniform(-5, 5, SHOTS[1] + QUERIES)
        y = curve(x) + NOISE * random.normal(size=len(x))
        weight = np.ones(len(x))
        weight[shots : SHOTS[1]] = 0
        points = Batch.of(*(each[:, None].astype(np.float32) for each in (x, y)), weight=weight.astype(np.float32))
        return Task(points.rows(slice(SHOTS[1])), points.rows(slice(SHOTS[1], None)))


def plans() -> dict[str, Learner]:
    """The plans; those that adapt a model share it, and so do those that fit a head to features."""
    mse, one = objectives.mse, torch.ones(())

    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh())

    def process(width: float) -> Learner:
        return GaussianProcess(mse, width * torch.ones(1), one, 0.02 * one)

    model, features = nn.Sequential(net(), nn.Linear(40, 1)), net()
    return {
        "maml, 1 step": kshot.maml(model, inner_lr=0.05, steps=1, objective=mse),
        "maml, 5 steps": kshot.maml(model, inner_lr=0.05, steps=5, objective=mse),
        "anil, 5 steps": kshot.learners.anil(model, inner_lr=0.05, steps=5, head="1", objective=mse),
        "r2d2, light penalty": kshot.learners.r2d2(features, l2=0.03, scale=None, objective=mse),
        "r2d2, heavy penalty": kshot.learners.r2d2(features, l2=1.0, scale=None, objective=mse),
        "attentive_np": kshot.learners.attentive_np(1, 1, width=64, objective=mse),
        "tnp_d": kshot.learners.tnp_d(1, 1, width=64, layers=3, heads=4, objective=mse),
        "line": kshot.learners.r2d2(nn.Identity(), l2=0.05, scale=None, objective=mse),
        "mean": SupportMean(mse),
        "nearest": neighbours(1, mse),
        "3 nearest": neighbours(3, mse),
        "process, width 0.3": process(0.3),
        "process, width 1": process(1.0),
        "process, width 3": process(3.0),
    }


def trained(seed: int, families: Sequence[str], steps: int, out: Path) -> Choosing:
    """The plans and what chooses among them, trained on families, or loaded."""
    torch.manual_seed(seed)
    learner = kshot.learners.choose(plans(), num_tasks=1000)
    folder = out / f"{seed}-{steps}-{'-'.join(families)}"
    if not folder.exists():
        source = mixture({family: Functions(family, seed=1000 * seed) for family in families}, seed=seed + 1)
        kshot.fit(learner, source, steps=steps, tasks_per_step=8, outer_lr=2e-3, mode="vmap", seed=seed)
        save_checkpoint(folder, learner, None, {})
    load_checkpoint(folder, learner)
    return learner


class Scores(NamedTuple):
    """Loss and seconds of each task, by policy, by plan, and of the oracle."""

    loss: dict[str, list[float]]
    seconds: dict[str, list[float]]


def score(learner: Choosing, source: TaskSource, num_tasks: int) -> Scores:
    """Score all policies and plans on the second half of the queries of test tasks."""
    scores = Scores({}, {})

    def add(name: str, of: Learner, adapt: Callable[[], Tree], judged: Batch) -> None:
        started = time.process_time()
        prediction = of.predict(adapt(), judged.inputs)
        scores.seconds.setdefault(name, []).append(time.process_time() - started)
        scores.loss.setdefault(name, []).append(float(objectives.mse.loss(prediction, judged)))

    with evaluation_mode(learner):
        for index in range(num_tasks):
            support, query = source.task("test", index)
            known, judged = (query.rows(half) for half in HALF)
            for learner.policy in POLICIES:
                add(learner.policy, learner, lambda support=support: learner.adapt(support), judged)
            for name, plan in learner.parts.items():
                add(name, plan, lambda plan=plan, support=support: plan.adapt(support), judged)
            best = learner.oracle(support, known)
            (chosen,) = best["weights"]
            add("oracle", learner, lambda best=best: best, judged)
            scores.seconds["oracle"][-1] = scores.seconds[chosen][-1]
    return scores


def pooled(parts: Sequence[Scores]) -> Scores:
    return Scores(
        *({name: [value for part in parts for value in part[kind][name]] for name in parts[0][kind]} for kind in (0, 1))
    )


def closed(fixed: np.ndarray, policy: np.ndarray, oracle: np.ndarray) -> str:
    """The share of the gap that is closed, with a 95 % bootstrap interval over tasks."""

    def share(rows: np.ndarray) -> np.ndarray:
        return (fixed[rows] - policy[rows]).mean(-1) / (fixed[rows] - oracle[rows]).mean(-1)

    draws = np.random.default_rng(0).integers(0, len(fixed), (2000, len(fixed)))
    low, high = np.quantile(share(draws), [0.025, 0.975])
    return f"{100 * share(np.arange(len(fixed))):.0f} % ({low * 100:.0f} to {high * 100:.0f})"


def show(title: str, scores: Scores) -> None:
    """Print a table of policies, the oracle and the plans."""
    loss = {name: np.array(values) for name, values in scores.loss.items()}
    print(f"\n{title}: {len(loss['fixed'])} tasks\n")
    print("| policy or plan | mse | difference to the best fixed plan | gap closed | ms |")
    print("| --- | --- | --- | --- | --- |")
    plain = sorted(loss.keys() - {*POLICIES, "oracle"}, key=lambda name: loss[name].mean())
    for name in (*POLICIES, "oracle", *plain):
        difference = interval(list(loss[name] - loss["fixed"]))
        share = closed(loss["fixed"], loss[name], loss["oracle"]) if name in POLICIES[1:] else "–"
        milliseconds = 1e3 * np.mean(scores.seconds[name])
        print(
            f"| {name} | {loss[name].mean():.4f} | {difference.mean:+.4f} ± {difference.ci95:.4f} | {share} | "
            f"{milliseconds:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/plans"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[Scores]] = {}
    for seed in args.seeds:
        tested = {family: Functions(family, seed=1000 * seed) for family in FAMILIES}
        held = PAIRS[seed % len(PAIRS)] if args.held_out else ()
        learner = trained(seed, [family for family in FAMILIES if family not in held], args.steps, args.out)
        for family in held:
            found.setdefault(f"{family}, not seen in training", []).append(score(learner, tested[family], args.tasks))
        if not held:
            found.setdefault("all families", []).append(score(learner, mixture(tested, seed=seed + 1), args.tasks))
    for title, parts in found.items():
        show(title, pooled(parts))
    if args.held_out:
        show("families not seen in training, together", pooled([each for parts in found.values() for each in parts]))


if __name__ == "__main__":
    main()
