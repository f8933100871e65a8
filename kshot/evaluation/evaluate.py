"""Evaluation of a learner on the first tasks of a split, with confidence intervals and the hash of the episodes."""

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

from kshot.evaluation.audit.findings import Audit, Evidence, Trust, real, stream, trust
from kshot.evaluation.audit.run import FEW, UntrustedFigure, failures, fingerprint, run_audits
from kshot.evaluation.by_class import ByClass, ByClassMeter
from kshot.evaluation.by_label import ByLabelMeter, LabelFigure
from kshot.evaluation.calibration import Calibration, CalibrationMeter
from kshot.evaluation.intervals import BOUNDS, Interval, interval
from kshot.evaluation.pooled import Pooled, PooledMeter
from kshot.evaluation.units import Units
from kshot.learner import Learner, evaluation_mode, predict_query
from kshot.learners.gradient.gradient_learner import GradientLearner
from kshot.models.encoder import Encoder
from kshot.objectives import check_task_values
from kshot.tasks.read_log import EVALUATION, during, note_test
from kshot.tasks.source import TaskSource, check_source, hash_into, short_hash
from kshot.training.fit import seeded
from kshot.training.ranks import map_over_ranks
from kshot.training.timing import named
from kshot.types import Split, Task, Tree, has_values, to

CHUNK = 16  # tasks drawn at once; bounds the memory of an evaluation


class Times(NamedTuple):
    """Milliseconds per task: the median and the 95th percentile over tasks."""

    median: float
    p95: float


class Scored(NamedTuple):
    """A task that an evaluation has just scored.

    Attributes:
        number, task: index of the task, and the task on the learner's device.
        state, prediction: the adapted state, and the prediction for the query set.
        figures: "loss" and the objective's metrics.
        adapt_seconds, predict_seconds: time to adapt and to predict.
    """

    number: int
    task: Task
    state: Tree
    prediction: Tree
    figures: dict[str, float]
    adapt_seconds: float
    predict_seconds: float


class _Result(NamedTuple):
    """What `Scored` has besides the number and the task."""

    state: Tree
    prediction: Tree
    figures: dict[str, float]
    adapt_seconds: float
    predict_seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation and its protocol.

    Attributes:
        split: split of the tasks.
        metrics: mean ± 95 % interval of "loss" and of each metric of the objective; over the units of the tasks, such
            as users or classes, if the source states them.
        episodes_sha256: hash over the content of all episodes, of their raw examples where inputs are features of
            texts; equal hashes mean equal tasks.
        inductive: True if no prediction depends on other queries; see `inference`.
        seconds: duration of the evaluation.
        adapt_ms, predict_ms: time to adapt to a task, and to predict its query set.
        calibration: calibration of the predictions; None if they have neither probabilities nor standard deviations.
        episodes: hash of each episode, shortened.
        units: of the tasks; None if each task is its own.
        per_task: metric -> figure of each task.
        audits: the audits of the evaluation; empty if it was not audited.
        inference: "inductive", "causal" or "transductive", as `Learner.inference`.
        num_members: 1, or the number of members of an ensemble.
        by_class: recall of each class, and which are confused; None if classes have no names.
        by_label: average precision of each label, if an example may have several.
        pooled: rmse and R² over all queries, if targets are numbers.
    """

    split: Split
    metrics: dict[str, Interval]
    episodes_sha256: str
    inductive: bool
    seconds: float
    adapt_ms: Times
    predict_ms: Times
    calibration: Calibration | None
    episodes: list[str] = field(repr=False)
    units: Units | None = field(repr=False)
    per_task: dict[str, list[float]] = field(repr=False)
    audits: tuple[Audit, ...] = field(default=(), repr=False)
    inference: str = "inductive"
    num_members: int = 1
    by_class: ByClass | None = field(default=None, repr=False)
    by_label: tuple[LabelFigure, ...] = field(default=(), repr=False)
    pooled: tuple[Pooled, ...] = ()

    @property
    def trust(self) -> Trust:
        """Whether the figures are trusted, and a sentence that says how many audits passed and were idle, and why."""
        return trust([audit.to_json() for audit in self.audits])

    @property
    def trusted(self) -> bool:
        """Whether the evaluation was audited, no audit failed, and more passed than were idle."""
        return self.trust.trusted

    def summary(self) -> dict[str, Any]:
        """The figures and their protocol, without those of single tasks."""
        hidden = ("per_task", "episodes", "units", "by_class", "by_label")
        fields = {name: value for name, value in vars(self).items() if name not in hidden}
        return fields | {
            "audits": [audit.to_json() for audit in self.audits],
            "trusted": self.trusted,
            "trust": self.trust.sentence,
        }


def evaluate(
    learner: Learner,
    source: TaskSource,
    *,
    split: Split = "test",
    num_tasks: int = 600,
    episodes_sha256: str | None = None,
    observe: Callable[[Scored], None] | None = None,
    audit: bool = True,
    checkpoint: Path | None = None,
) -> Evaluation:
    """Adapt to each of the first `num_tasks` tasks of a split independently and score its query set.

    Tasks may differ in the sizes of their sets and in the number of classes: each is scored by itself, and padding of
    the query set is removed before. The processes of a process group share the tasks, and all must call this function.

    Args:
        learner: learner, used in evaluation mode and left unchanged.
        split: "test" for the figure to publish, once, at the end; use "val" for decisions and model selection.
        num_tasks: number of tasks: the tasks 0 … num_tasks-1 of the split, always the same ones.
        episodes_sha256: expected hash of the episodes, or its first 8 or more digits. The episodes are drawn and hashed
            before any of them is scored.
        observe: called with each task after it is scored, without gradients.
        audit: whether to audit the figures (see `kshot.evaluation.audit.run`) on some of the tasks. A failed audit
            makes `Evaluation.trusted` False and warns with `UntrustedFigure`.
        checkpoint: folder of the checkpoint that the learner was loaded from, which the audit compares.

    Returns:
        Metrics with intervals, and the protocol under which they hold.

    Raises:
        TypeError: the source is no source of tasks.
        ValueError: fewer than one task, targets that do not suit the objective, or the episodes do not have the
            expected hash.

    Example:
        >>> from kshot.learners.gradient.maml import maml
        >>> from kshot.models.backbones import mlp
        >>> from kshot.objectives import mse
        >>> from kshot.sources.functions import sinusoids
        >>> result = evaluate(maml(mlp(1, 1), inner_lr=0.01, objective=mse), sinusoids(), num_tasks=4)
        >>> result.metrics["mse"].num_tasks
        4
    """
    if num_tasks < 1:
        raise ValueError(f"an evaluation needs at least one task, got num_tasks={num_tasks}")
    check_source(source)
    if episodes_sha256 is not None:
        with during(source, EVALUATION):
            _check_hash(source, split, num_tasks, episodes_sha256)
    device = next((p.device for p in learner.parameters()), None)
    evidence = Evidence(fingerprint(learner), episodes=[], figures={}, first=[])
    times: list[tuple[float, float]] = []
    audits: tuple[Audit, ...] = ()
    digest, episodes = hashlib.sha256(), list[str]()
    calibration, by_class, by_label = CalibrationMeter(learner.objective), ByClassMeter(), ByLabelMeter()
    of_names: ByClassMeter | ByLabelMeter = by_label if learner.objective.predicts == "labels" else by_class
    pooled, class_names = PooledMeter(learner.objective), source.classes_of(split, range(num_tasks))
    started = time.monotonic()

    def tasks() -> Iterator[tuple[int, Task]]:
        for number, task, raw in _with_raw(source, split, num_tasks):
            hash_into(digest, raw)
            episodes.append(short_hash(raw))
            evidence.episodes.append(short_hash(task))
            task = _without_padding(task)
            if has_values(task.support.weight):
                check_task_values(learner.objective, task)
            yield number, to(task, device)

    with evaluation_mode(learner), during(source, EVALUATION):
        score, led = _Scoring(learner, source.seed), not _keeps_features(learner)
        for (number, task), result in map_over_ranks(score, tasks(), led=led):
            scored = Scored(number, task, *result)
            calibration.add(scored.prediction, scored.task.query)
            pooled.add(scored.prediction, scored.task.query)
            if class_names is not None:
                of_names.add(scored.prediction, scored.task.query, class_names[number])
            if number < FEW:
                evidence.first.append((scored.task, scored.prediction))
            times.append((scored.adapt_seconds, scored.predict_seconds))
            for name, value in scored.figures.items():
                evidence.figures.setdefault(name, []).append(value)
            if observe is not None:
                observe(scored)
        seconds = time.monotonic() - started
        if audit:
            audits = run_audits(learner, source, split, evidence, checkpoint)
    if split == "test":
        note_test(learner, source)
    for failed in failures(audits):
        warnings.warn(f"{failed.question} {failed.finding}", UntrustedFigure, stacklevel=2)
    units = units_of(source, split, num_tasks)
    adapt_ms, predict_ms = (Times(*(1e3 * float(q) for q in np.percentile(each, (50, 95)))) for each in zip(*times))
    return Evaluation(
        split=split,
        metrics={name: interval(values, units, bounds=BOUNDS.get(name)) for name, values in evidence.figures.items()},
        episodes_sha256=digest.hexdigest(),
        inductive=learner.inference == "inductive",
        seconds=seconds,
        adapt_ms=adapt_ms,
        predict_ms=predict_ms,
        calibration=calibration.result(units),
        episodes=episodes,
        units=units,
        per_task=evidence.figures,
        audits=audits,
        inference=learner.inference,
        num_members=learner.num_members,
        by_class=by_class.result(units),
        by_label=by_label.result(),
        pooled=tuple(pooled.result(units)),
    )


class _Scoring:
    """Adapts to a task and scores its query set; can be sent to other processes."""

    def __init__(self, learner: Learner, seed: int) -> None:
        self.learner, self.seed = learner, seed

    def __call__(self, item: tuple[int, Task]) -> _Result:
        number, task = item
        with torch.no_grad(), seeded(self.seed, number, device=task.support.weight.device), named("validation task"):
            return _score(self.learner, task)


def _keeps_features(learner: Learner) -> bool:
    """Whether a pretrained encoder in a learner keeps the features of inputs for tasks to come."""
    bodies = {id(each) for part in learner.modules() if isinstance(part, Encoder) for each in part.body.parameters()}
    adapted = learner.adaptable_params().values() if isinstance(learner, GradientLearner) else ()
    return bool(bodies) and bodies.isdisjoint(map(id, adapted))


def score_again(learner: Learner, source: TaskSource, split: Split, number: int) -> Scored:
    """Adapt to one task and score its query set, as `evaluate` does with the same random numbers; on the CPU."""
    device = next((p.device for p in learner.parameters()), None)
    with evaluation_mode(learner), during(source, EVALUATION), seeded(source.seed, number, device=device):
        task = source.task(split, number)
        task = task._replace(query=real(task.query))
        result = _score(learner, to(task, device))
    return Scored(number, task, *result._replace(prediction=to(result.prediction, torch.device("cpu"))))


def units_of(source: TaskSource, split: Split, num_tasks: int) -> Units | None:
    """The units of the first tasks of a split, with their names; None if each task is its own."""
    numbers = source.units(split, range(num_tasks))
    return None if numbers is None else Units(numbers, source.unit or source.member, list(source.unit_names(split)))


def _without_padding(task: Task) -> Task:
    """The task without padding of its query set, which a transductive learner would mistake for queries."""
    return task if (task.query.weight > 0).all() else task._replace(query=real(task.query))


def _with_raw(source: TaskSource, split: Split, num_tasks: int) -> Iterator[tuple[int, Task, Task]]:
    """The number of each task, the task, and that of the source's `raw`."""
    raw, tasks = source.raw, stream(source, split, num_tasks, chunk=CHUNK)
    if raw is source:
        yield from ((number, task, task) for number, task in tasks)
    else:
        yield from (
            (number, task, of_raw)
            for (number, task), (_, of_raw) in zip(tasks, stream(raw, split, num_tasks, chunk=CHUNK))
        )


def _check_hash(source: TaskSource, split: Split, num_tasks: int, expected: str) -> None:
    prefix = expected.lower().rstrip("….")
    if len(prefix) < 8 or set(prefix) - set("0123456789abcdef"):
        raise ValueError(f"a hash of episodes has 8 to 64 hexadecimal digits, got {expected!r}")
    digest = hashlib.sha256()
    for _, task in stream(source.raw, split, num_tasks, chunk=CHUNK):
        hash_into(digest, task)
    if not digest.hexdigest().startswith(prefix):
        raise ValueError(
            f"the first {num_tasks} {split} tasks have the hash {digest.hexdigest()[:16]}…, not {expected[:16]}…: "
            "they are different episodes, and figures on them are not comparable. Check the number of tasks, the seed, "
            "ways, shots and queries, and the version of the data"
        )


def _score(learner: Learner, task: Task) -> _Result:
    started = time.perf_counter()
    with named("adapt"):
        state = learner.adapt(task.support)
        _synchronize(task)
    adapted = time.perf_counter()
    with named("predict"):
        prediction = predict_query(learner, state, task.query)
        _synchronize(task)
    predicted = time.perf_counter()
    objective = learner.objective
    figures = {"loss": objective.loss(prediction, task.query)} | objective.metrics(prediction, task.query)
    values = {name: float(value) for name, value in figures.items()}
    return _Result(state, prediction, values, adapted - started, predicted - adapted)


def _synchronize(task: Task) -> None:
    """Wait for the work queued on the device before the clock is read."""
    if task.support.weight.device.type != "cpu":
        torch.accelerator.synchronize(task.support.weight.device)
