"""Whether what a run file names goes together: found out by the tables and on a few tasks, before any training."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path

import torch

from kshot.app.baselines import Setting, baselines_of, need_pretraining
from kshot.app.build import Shapes, build_learner, build_model, build_policy, device_of, has_head, shapes_of
from kshot.app.errors import FULL, exit_code
from kshot.app.folder import RunFolder
from kshot.app.goes_with import TARGETS, advice_on, refuse_by_table, targets_of
from kshot.app.pretraining import pretraining_of_run
from kshot.app.schema import learners_of
from kshot.app.spec import Spec
from kshot.deciding.adjusting import Adjustable
from kshot.deciding.past import Past
from kshot.evaluation.baselines import baselines_of as fitted_baselines
from kshot.evaluation.target import Target
from kshot.learner import Learner, evaluation_mode, predict_query
from kshot.learners.heads.head import FeatureStatistics
from kshot.learners.pooling.fitted import FittedToTraining
from kshot.objectives import Objective, classes_present
from kshot.tasks.source import TaskSource
from kshot.training.fit import Diverged, Settings, meta_training_loop
from kshot.training.ranks import alone
from kshot.training.step import Mode
from kshot.types import SPLITS, Task

LOOKED_AT = 64
"""Training tasks among which one is sought whose support set lacks a class of its query set."""


SMALL_BATCH = 8
"""Examples of the step of pretraining that is tried."""


def refuse_unsuited(spec: Spec, source: TaskSource, shapes: Shapes | None = None) -> None:
    """Raise ValueError if what a run file names does not go together, with what to write instead.

    The tables of `goes_with` are checked first. Then the model is pretrained for a step if it is to be, and the
    learner, as it is before training, adapts to a training task, and to one whose support set lacks a class if there
    is one, and is trained for a step. It is refused if it fails, or if its loss is not finite.
    """
    device = device_of(spec)
    shapes = shapes or shapes_of(source)
    refuse_by_table(spec, source, shapes)
    _refuse_other_metrics(spec, source)
    need_pretraining(spec, source.objective)
    baselines_of(Setting(spec, source, shapes, device))
    if has_head(spec):
        _refuse_other_ways(spec, source)
    _try_to_pretrain(spec, source, shapes)
    learner = build_learner(spec, build_model(spec, shapes, head=has_head(spec)), shapes)
    batched = spec.train.mode == "vmap" and not spec.shard_frozen
    mode: Mode = "vmap" if batched else "loop"  # others take long, or record anew
    if why := unsuited(learner, source, mode=mode, failures=_failures(spec)):
        raise ValueError(f"learner {spec.learner.kind} {why}")
    policy = build_policy(spec, Target.parse(spec.target), Past)
    Adjustable(learner, source).check(getattr(policy, "actions", ()))


def _failures(spec: Spec) -> tuple[type[Exception], ...]:
    """The errors that refuse a run file: of parts of the user's own, all; any other of kshot's parts is its fault."""
    parts = (spec.source, spec.objective, spec.model, *learners_of(spec.learner))
    own = any(part is not None and ":" in part.kind for part in parts)
    return (Exception,) if own else (ValueError, RuntimeError)


def _try_to_pretrain(spec: Spec, source: TaskSource, shapes: Shapes) -> None:
    """Raise ValueError if the model cannot be pretrained on the source's examples."""
    pretraining = pretraining_of_run(spec, RunFolder(Path()))
    if pretraining is None:
        return
    try:
        model = build_model(spec, shapes, head=has_head(spec))
        with warnings.catch_warnings(), suppress(Diverged):
            warnings.simplefilter("ignore")  # training says it
            pretraining.loop(model, source, size=SMALL_BATCH).run(1)
    except _failures(spec) as error:
        raise _refusal(error, f"source {spec.source.kind} does not go with pretrain: ") from error


def _refusal(error: Exception, begin: str, end: str = "") -> Exception:
    """The error that says why a trial failed; the error itself if the memory was full."""
    if exit_code(error) == FULL:
        return error
    return ValueError(f"{begin}{_first_line(error)}{end}")


def _first_line(error: Exception) -> str:
    kind = "" if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: "
    return kind + (str(error).splitlines()[0] if str(error) else type(error).__name__)


def _refuse_other_metrics(spec: Spec, source: TaskSource) -> None:
    """Raise ValueError if the target names a metric that the tasks do not have."""
    objective, query = source.objective, source.task("train", 0).query
    try:
        objective.check_targets(query.targets)
        objective.check_values(query)
        names = ["loss", *objective.metrics(objective.as_prediction(query.targets), query)]
    except Exception as error:
        if spec.objective is None:
            raise
        begin = f"objective {spec.objective.kind} does not go with source {spec.source.kind}: "
        raise _refusal(error, begin) from error
    if Target.parse(spec.target).metric not in names:
        raise ValueError(f"target {spec.target!r}: these tasks report {', '.join(names)}")


def _refuse_other_ways(spec: Spec, source: TaskSource) -> None:
    """Raise ValueError if tasks of val or test have other numbers of classes than the model's last layer."""
    ways = {}
    for split in SPLITS:
        with suppress(ValueError):  # no such split, which a run reports
            axis = 1 if source.objective.predicts == "masks" else -1
            ways[split] = source.task(split, 0).query.targets.shape[axis]
    if len(set(ways.values())) > 1:
        counts = ", ".join(f"{count} in {split}" for split, count in ways.items())
        raise ValueError(
            f"learner {spec.learner.kind} adapts a model with a fixed number of outputs, and the tasks have {counts}: "
            "make ways, train_ways and test_ways equal, or take a learner for any number of ways, such as protonet"
        )


def unsuited(
    learner: Learner,
    source: TaskSource,
    *,
    mode: Mode = "loop",
    failures: tuple[type[Exception], ...] = (ValueError, RuntimeError),
) -> str:
    """Why a learner cannot learn the source's tasks, as the end of a sentence; empty if it can.

    Args:
        learner: changed by a step of training.
        source: source of the tasks.
        mode: engine of the step of training.
        failures: the errors that mean that it cannot; others are raised.
    """
    if fitted_baselines(learner):
        return ""  # it is fitted to the data, which says whether it suits them
    objective = source.objective
    of_numbers = objective.predicts in ("values", "distribution")
    try:
        for task in _tasks(source):
            if not _has_finite_loss(learner, task) and not of_numbers:  # with numbers, inner steps may diverge
                return f"{_why_not_finite(objective, task)}. {_advice(objective)}"
        if of_numbers and _reads_a_class(learner, source):
            return f"{_why_not_finite(objective, source.task('train', 0))}. {_advice(objective)}"
        _try_to_train(learner, source, mode)
    except failures as error:
        if exit_code(error) == FULL:
            raise
        return (
            f"cannot learn these tasks, whose targets are {_targets(objective)}: {_first_line(error)}. "
            f"{_advice(objective)}"
        )
    return ""


def _reads_a_class(learner: Learner, source: TaskSource) -> bool:
    """Whether a learner takes numbers for classes: it reads a positive target so, and has none if all are negative."""
    with suppress(ValueError, RuntimeError):
        example = source.task("train", 0)
        task, other = (
            Task(*(batch._replace(targets=sign * batch.targets.abs()) for batch in example)) for sign in (-1, 1)
        )
        return not _has_finite_loss(learner, task) and _has_finite_loss(learner, other)
    return False


def _try_to_train(learner: Learner, source: TaskSource, mode: Mode) -> None:
    """Take a step of training, and look at the examples that a fit in closed form needs."""
    of_groups = [part for part in learner.modules() if isinstance(part, FittedToTraining) and not part.after_training]
    if of_groups and len(source.training_groups(2)) < 2:
        raise ValueError("it is fitted to the differences of groups, and needs at least two in the training split")
    if any(isinstance(part, FeatureStatistics) for part in learner.modules()):
        source.pretraining_batch(0, SMALL_BATCH)
    with warnings.catch_warnings(), suppress(Diverged), alone():
        warnings.simplefilter("ignore")  # training says it
        meta_training_loop(learner, source, Settings(size=1), mode=mode).run(1)


def _has_finite_loss(learner: Learner, task: Task) -> bool:
    with evaluation_mode(learner):
        prediction = predict_query(learner, learner.adapt(task.support), task.query)
        return bool(torch.isfinite(learner.objective.loss(prediction, task.query)))


def _tasks(source: TaskSource) -> list[Task]:
    """The first training task, and the first with a query whose class its support set lacks, if classes are shared."""
    first = source.task("train", 0)
    if source.objective.predicts != "classes" or source.objective.task_specific_classes:
        return [first]
    count = source.num_tasks("train")
    for index in range(LOOKED_AT if count is None else min(count, LOOKED_AT)):
        task = source.task("train", index)
        if bool((classes_present(task.query) & ~classes_present(task.support)).any()):
            return [first, task]
    return [first]


def _targets(objective: Objective) -> str:
    targets = targets_of(objective)
    return "of a kind of their own" if targets is None else TARGETS[targets]


def _why_not_finite(objective: Objective, task: Task) -> str:
    if objective.predicts in ("values", "distribution"):
        return "classifies, and these tasks have numbers as targets: its loss is infinite from the start"
    if objective.predicts == "classes" and bool((classes_present(task.query) & ~classes_present(task.support)).any()):
        return (
            "gives a class without support examples no probability, and in these tasks such classes occur among the "
            "queries: its loss is infinite from the start"
        )
    return "has a loss that is not finite on the first training task; look for extreme values by `kshot data check`"


def _advice(objective: Objective) -> str:
    targets = targets_of(objective)
    if targets is None:
        return "docs/choosing.md lists learners"
    return f"Take one for these, such as {advice_on(targets)}"
