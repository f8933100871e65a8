"""Choosing among plans of adapting, inside tasks: a mixture of unlike families of functions, and families held out.

    OMP_NUM_THREADS=1 python benchmarks/plans.py [--seeds 0 1 2] [--steps 1500] [--tasks 400] [--held-out]

Each task is a function of one number, drawn from one of six families: waves, lines, steps, saw teeth, smooth and rough
random functions. 4 to 20 noisy points are the support set, 40 others the query. Plans are meta-trained together on the
mixture; what chooses among them is fitted to other training tasks. The oracle takes the plan that is best on half of
the queries. All are judged on the other half.

Prints, as means over test tasks ± 95 % interval with seeds pooled: the mean squared error, the share of the gap from
the best fixed plan to the oracle that is closed, the paired difference to the best fixed plan, and the mean processor
time to adapt and predict. With `--held-out`, also the paired difference on each family when neither plans nor gate were
trained on it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import kshot
from kshot import Learner, objectives
from kshot.evaluation.intervals import interval
from kshot.learner import evaluation_mode
from kshot.learners.baselines.functions import GaussianProcess
from kshot.learners.baselines.regressors import neighbours, ridge
from kshot.learners.baselines.simple import SupportMean
from kshot.tasks.mixture import mixture
from kshot.tasks.source import TaskSource, generator
from kshot.types import Batch, Split, Task

NOISE, SHOTS, QUERIES = 0.1, (4, 20), 40

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
        points = Batch.of(*(torch.from_numpy(each).float()[:, None] for each in (x, y)), weight=torch.from_numpy(weight).float())
        return Task(points.rows(slice(SHOTS[1])), points.rows(slice(SHOTS[1], None)))


def plans() -> dict[str, Learner]:
    """The plans; those that adapt a model share it."""
    body = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh())
    model, features = nn.Sequential(body, nn.Linear(40, 1)), nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh())
    mse, one = objectives.mse, torch.ones(())
    process = lambda width: GaussianProcess(mse, width * torch.ones(1), one, 0.02 * one)  # noqa: E731
    return {
        "maml, 1 step": kshot.maml(model, inner_lr=0.05, steps=1, objective=mse),
        "maml, 5 steps": kshot.maml(model, inner_lr=0.05, steps=5, objective=mse),
        "anil, 5 steps": kshot.learners.anil(model, inner_lr=0.05, steps=5, head="1", objective=mse),
        "r2d2, light penalty": kshot.learners.r2d2(features, l2=0.03, scale=None, objective=mse),
        "r2d2, heavy penalty": kshot.learners.r2d2(features, l2=1.0, scale=None, objective=mse),
        "cnp": kshot.learners.cnp(1, 1, width=64, objective=mse),
        "attentive_np": kshot.learners.attentive_np(1, 1, width=64, objective=mse),
        "line": ridge(0.1, mse),
        "mean": SupportMean(mse),
        "nearest": neighbours(1, mse),
        "3 nearest": neighbours(3, mse),
        "process, width 0.3": process(0.3),
        "process, width 1": process(1.0),
        "process, width 3": process(3.0),
    }
