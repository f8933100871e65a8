"""Scoring a learner on a fixed range of tasks, with an interval and the hash of the very episodes."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kshot.evaluation.audit.findings import Audit, Evidence
from kshot.evaluation.audit.run import FEW, UntrustedFigure, failures, fingerprint, run_audits
from kshot.evaluation.calibration import Calibrating, Calibration
from kshot.evaluation.coverage import Coverage, Covering
from kshot.evaluation.intervals import Interval, interval
from kshot.learner import Learner
from kshot.sources.ratings.tasks import ratings_of
from kshot.tasks.read_log import EVALUATION, during
from kshot.tasks.source import TaskSource, hash_into, short_hash
from kshot.training.fit import seeded
from kshot.types import Split, Task, Tree, to, unstack

CHUNK = 16  # tasks drawn at once; bounds the memory of an evaluation


class Times(NamedTuple):
    """Milliseconds that something took on a task: the median over tasks, and what 95 % of them stayed below."""

    median: float
    p95: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        """From the seconds of each task."""
        return cls(*(1e3 * float(value) for value in np.percentile(seconds, (50, 95))))


class Scored(NamedTuple):
    """A task that an evaluation has just scored.

    Attributes:
        number: the task's, counted from 0.
        task: as the learner saw it.
        state: what the learner adapted to.
        prediction: for the query set.
        figures: "loss" and the objective's metrics.
        adapt_seconds, predict_seconds: what they took.
    """

    number: int
    task: Task
    state: Tree
    prediction: Tree
    figures: dict[str, float]
    adapt_seconds: float
    predict_seconds: float


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, and under which protocol.

    Attributes:
        split: where the tasks came from.
        metrics: mean ± 95 % interval over tasks of "loss" and of each metric of the objective; over subjects, such as
            users, where the source says that tasks are of some.
        episodes_sha256: hash over the content of all episodes: equal hashes, equal tasks.
        inductive: True if no prediction depends on other queries.
        seconds: how long it took.
        adapt_ms: what adapting to a task took.
        predict_ms: what predicting a task's query set took.
        calibration: whether the predictions are as sure as they may be; None if they do not say how sure they are.
        coverage: of the catalogue, where tasks rate items and it was asked for.
        episodes: the hash of each episode, shortened.
        subjects: whose each task is; None where each stands for itself.
        per_task: the figures task by task.
        audits: what was asked of the evaluation, and the answers; none if it was not audited.
    """

    split: Split
    metrics: dict[str, Interval]
    episodes_sha256: str
    inductive: bool
    seconds: float
    adapt_ms: Times
    predict_ms: Times
    calibration: Calibration | None
    coverage: Coverage | None
    episodes: list[str] = field(repr=False)
    subjects: np.ndarray | None = field(repr=False)
    per_task: dict[str, list[float]] = field(repr=False)
    audits: tuple[Audit, ...] = field(default=(), repr=False)

    @property
    def trusted(self) -> bool:
        """Whether the evaluation was audited, and no audit failed."""
        return bool(self.audits) and not failures(self.audits)

    def summary(self) -> dict[str, Any]:
        """The figures and their protocol without the task-by-task table."""
        fields = {name: value for name, value in vars(self).items() if name not in ("per_task", "episodes", "subjects")}
        return fields | {"audits": [audit.to_json() for audit in self.audits], "trusted": self.trusted}


def evaluate(
    learner: Learner,
    source: TaskSource,
    *,
    split: Split = "test",
    tasks: int = 600,
    episodes_sha256: str | None = None,
    observe: Callable[[Scored], None] | None = None,
    audit: bool = True,
    coverage: int = 0,
    checkpoint: Path | None = None,
) -> Evaluation:
    """Adapt to each of the first `tasks` tasks of a split on its own and score its query set.

    Args:
        learner: used in evaluation mode, and left as it was.
        source: where the tasks come from.
        split: "test" for the figure to publish, once, at the end; decisions and choices read "val".
        tasks: how many; the tasks 0 … tasks-1 of the split, always the same ones.
        episodes_sha256: the hash that the episodes must have, or its beginning, at least 8 digits. They are drawn and
            hashed before anything is scored.
        observe: called with each task as soon as it is scored.
        audit: whether to look for what would make the figures worthless (see `kshot.evaluation.audit.run`), on some of
            the tasks. An audit that fails makes `Evaluation.trusted` False and warns with `UntrustedFigure`.
        coverage: of how many of the first tasks the users are ranked the whole catalogue, where tasks rate items.
        checkpoint: the folder of the checkpoint that the learner was loaded from, for the audit to compare.

    Returns:
        Metrics with intervals, and the protocol they hold under.

    Raises:
        ValueError: fewer than one task; other episodes than those that were asked for.

    Example:
        >>> from kshot.learners.gradient.maml import maml
        >>> from kshot.models.backbones import mlp
        >>> from kshot.objectives import mse
        >>> from kshot.sources.functions import sinusoids
        >>> result = evaluate(maml(mlp(1, 1), inner_lr=0.01, objective=mse), sinusoids(), tasks=4)
        >>> result.metrics["mse"].tasks
        4
    """
    if episodes_sha256 is not None:
        with during(source, EVALUATION):
            _check_hash(source, split, tasks, episodes_sha256)
    device = next((p.device for p in learner.parameters()), None)
    per_task: dict[str, list[float]] = {}
    adapt_seconds: list[float] = []
    predict_seconds: list[float] = []
    episodes: list[str] = []
    first: list[tuple[Task, Tree]] = []
    weights = fingerprint(learner)
    audits: tuple[Audit, ...] = ()
    digest = hashlib.sha256()
    calibrating = Calibrating(learner.objective)
    ratings = ratings_of(source)
    covering = Covering(learner, ratings) if ratings else None
    started = time.monotonic()
    was_training = learner.training
    learner.eval()
    try:
        with torch.no_grad(), during(source, EVALUATION):
            for number, task in enumerate(_drawn(source, split, tasks)):
                hash_into(digest, task)
                episodes.append(short_hash(task))
                with seeded(source.seed, number, device=device):
                    scored = _score(learner, to(_unpadded(task), device), number)
                    calibrating.add(scored.prediction, scored.task.query)
                    if covering and number < coverage:
                        covering.add(scored.task, scored.state)
                if number < FEW:
                    first.append((scored.task, scored.prediction))
                adapt_seconds.append(scored.adapt_seconds)
                predict_seconds.append(scored.predict_seconds)
                for name, value in scored.figures.items():
                    per_task.setdefault(name, []).append(value)
                if observe is not None:
                    observe(scored)
            seconds = time.monotonic() - started
            if audit:
                audits = run_audits(learner, source, split, Evidence(weights, episodes, per_task, first), checkpoint)
    finally:
        learner.train(was_training)
    for failed in failures(audits):
        warnings.warn(f"{failed.asks} {failed.found}", UntrustedFigure, stacklevel=2)
    subjects = source.subjects(split, range(tasks))
    return Evaluation(
        split=split,
        metrics={name: interval(values, subjects) for name, values in per_task.items()},
        episodes_sha256=digest.hexdigest(),
        inductive=not learner.transductive,
        seconds=seconds,
        adapt_ms=Times.of(adapt_seconds),
        predict_ms=Times.of(predict_seconds),
        calibration=calibrating.result(subjects),
        coverage=covering.result() if covering else None,
        episodes=episodes,
        subjects=subjects,
        per_task=per_task,
        audits=audits,
    )


def _drawn(source: TaskSource, split: Split, tasks: int) -> Iterator[Task]:
    """The first `tasks` tasks of a split, one after another."""
    if tasks < 1:
        raise ValueError(f"an evaluation needs at least one task, got {tasks}")
    for start in range(0, tasks, CHUNK):
        yield from unstack(source.stack(split, range(start, min(start + CHUNK, tasks))))


def _check_hash(source: TaskSource, split: Split, tasks: int, expected: str) -> None:
    wanted = expected.lower().rstrip("….")
    if len(wanted) < 8 or set(wanted) - set("0123456789abcdef"):
        raise ValueError(f"a hash of episodes is 8 to 64 hexadecimal digits, got {expected!r}")
    digest = hashlib.sha256()
    for task in _drawn(source, split, tasks):
        hash_into(digest, task)
    if not digest.hexdigest().startswith(wanted):
        raise ValueError(
            f"these {tasks} {split} tasks hash to {digest.hexdigest()[:16]}…, not {expected[:16]}…: they are other "
            "episodes, and a figure on them does not compare. Look for another number of tasks, seed, size of tasks, "
            "or version of the data"
        )


def _unpadded(task: Task) -> Task:
    """The task without the query rows that only fill up a stack; a transductive learner would take them for queries."""
    real = task.query.weight > 0
    return task if real.all() else task._replace(query=task.query.rows(real))


def _score(learner: Learner, task: Task, number: int) -> Scored:
    started = time.perf_counter()
    state = learner.adapt(task.support)
    _finish(task)
    adapted = time.perf_counter()
    prediction = learner.predict(state, task.query.inputs)
    _finish(task)
    predicted = time.perf_counter()
    figures = {"loss": learner.objective.loss(prediction, task.query)}
    figures.update(learner.objective.metrics(prediction, task.query))
    values = {name: float(value) for name, value in figures.items()}
    return Scored(number, task, state, prediction, values, adapted - started, predicted - adapted)


def _finish(task: Task) -> None:
    """Wait for the device, whose work is queued, before a clock is read."""
    if task.support.weight.device.type != "cpu":
        torch.accelerator.synchronize(task.support.weight.device)
