"""Scoring a learner on a fixed range of tasks, with an interval and the hash of the very episodes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from kshot.evaluation.intervals import Interval, interval
from kshot.learner import Learner
from kshot.tasks.source import TaskSource, hash_into
from kshot.training.fit import seeded
from kshot.types import Split, Task, to, unstack

CHUNK = 16  # tasks drawn at once; bounds the memory of an evaluation


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, and under which protocol.

    Attributes:
        split: where the tasks came from.
        metrics: mean ± 95 % interval over tasks of "loss" and of each metric of the objective.
        per_task: the same figures task by task.
        episodes_sha256: hash over the content of all episodes: equal hashes, equal tasks.
        inductive: True if no prediction depends on other queries.
        seconds: how long it took.
        adapt_ms: median milliseconds that adapting to one task took.
    """

    split: Split
    metrics: dict[str, Interval]
    episodes_sha256: str
    inductive: bool
    seconds: float
    adapt_ms: float
    per_task: dict[str, list[float]] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """The figures and their protocol without the task-by-task table, ready for JSON."""
        fields = {name: value for name, value in vars(self).items() if name != "per_task"}
        return fields | {"metrics": {name: value._asdict() for name, value in self.metrics.items()}}


def evaluate(
    learner: Learner,
    source: TaskSource,
    *,
    split: Split = "test",
    tasks: int = 600,
    observe: Callable[[int], None] | None = None,
) -> Evaluation:
    """Adapt to each of the first `tasks` tasks of a split on its own and score its query set.

    Args:
        learner: used in evaluation mode, and left as it was.
        source: where the tasks come from.
        split: "test" for the figure to publish, once, at the end; decisions and choices read "val".
        tasks: how many; the tasks 0 … tasks-1 of the split, always the same ones.
        observe: called with the number of tasks done, after each.

    Returns:
        Metrics with intervals, and the protocol they hold under.

    Raises:
        ValueError: fewer than one task.

    Example:
        >>> from kshot.learners.gradient import maml
        >>> from kshot.models.backbones import mlp
        >>> from kshot.objectives import mse
        >>> from kshot.tasks.synthetic import sinusoids
        >>> result = evaluate(maml(mlp(1, 1), inner_lr=0.01, objective=mse), sinusoids(), tasks=4)
        >>> result.metrics["mse"].tasks
        4
    """
    if tasks < 1:
        raise ValueError(f"an evaluation needs at least one task, got {tasks}")
    device = next((p.device for p in learner.parameters()), None)
    per_task: dict[str, list[float]] = {}
    adapt_s: list[float] = []
    digest = hashlib.sha256()
    started = time.monotonic()
    was_training = learner.training
    learner.eval()
    try:
        for start in range(0, tasks, CHUNK):
            stack = source.stack(split, range(start, min(start + CHUNK, tasks)))
            for number, task in enumerate(unstack(stack), start):
                hash_into(digest, task)
                with torch.no_grad(), seeded(source.seed, number, device=device):
                    figures, seconds = _score(learner, to(task, device))
                adapt_s.append(seconds)
                for name, value in figures.items():
                    per_task.setdefault(name, []).append(value)
                if observe is not None:
                    observe(number + 1)
    finally:
        learner.train(was_training)
    return Evaluation(
        split=split,
        metrics={name: interval(values) for name, values in per_task.items()},
        episodes_sha256=digest.hexdigest(),
        inductive=not learner.transductive,
        seconds=time.monotonic() - started,
        adapt_ms=1e3 * float(np.median(adapt_s)),
        per_task=per_task,
    )


def _score(learner: Learner, task: Task) -> tuple[dict[str, float], float]:
    started = time.perf_counter()
    state = learner.adapt(task.support)
    seconds = time.perf_counter() - started
    prediction = learner.predict(state, task.query.inputs)
    figures = {"loss": learner.objective.loss(prediction, task.query)}
    figures.update(learner.objective.metrics(prediction, task.query))
    return {name: float(value) for name, value in figures.items()}, seconds
