"""Whether a learner can learn a source's tasks: found out on a few of them, before any training."""

from __future__ import annotations

from contextlib import suppress

import torch

from kshot.app.build import Shapes, build_learner, build_model, has_head, shapes_of
from kshot.app.spec import Spec
from kshot.learner import Learner, evaluation_mode, predict_query
from kshot.objectives import Objective, classes_present
from kshot.tasks.source import TaskSource
from kshot.types import SPLITS, Task

LOOKED_AT = 64
"""Training tasks among which one is sought whose support set lacks a class of its query set."""


def refuse_unsuited(spec: Spec, source: TaskSource, shapes: Shapes | None = None) -> None:
    """Raise ValueError if the run file's learner cannot learn the source's tasks, with what to write instead.

    The learner, as it is before training, adapts to a training task, and to one whose support set lacks a class if
    there is one. It is refused if it fails, or if its loss is not finite.
    """
    shapes = shapes or shapes_of(source)
    if has_head(spec):
        _refuse_other_ways(spec, source)
    learner = build_learner(spec, build_model(spec, shapes, head=has_head(spec)), shapes)
    if why := unsuited(learner, source):
        raise ValueError(f"learner {spec.learner.kind} {why}")


def _refuse_other_ways(spec: Spec, source: TaskSource) -> None:
    """Raise ValueError if tasks of val or test have other numbers of classes than the model's last layer."""
    ways = {}
    for split in SPLITS:
        with suppress(ValueError):  # no such split, which a run reports
            ways[split] = source.task(split, 0).query.targets.shape[-1]
    if len(set(ways.values())) > 1:
        counts = ", ".join(f"{count} in {split}" for split, count in ways.items())
        raise ValueError(
            f"learner {spec.learner.kind} adapts a model with a fixed number of outputs, and the tasks have {counts}: "
            "make ways, train_ways and test_ways equal, or take a learner for any number of ways, such as protonet"
        )


def unsuited(learner: Learner, source: TaskSource) -> str:
    """Why a learner cannot learn the source's tasks, as the end of a sentence; empty if it can."""
    objective = source.objective
    of_numbers = objective.predicts in ("values", "distribution")
    try:
        for task in _tasks(source):
            if not _has_finite_loss(learner, task) and not of_numbers:  # with numbers, inner steps may diverge
                return f"{_why_not_finite(objective, task)}. {_advice(objective)}"
    except (ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"cannot learn these tasks, whose targets are {_targets(objective)}: {first}. {_advice(objective)}"
    if of_numbers:
        # A classifier reads a positive target as its class, and has no class left if all are negative.
        with suppress(ValueError, RuntimeError):
            example = source.task("train", 0)
            task, other = (
                Task(*(batch._replace(targets=sign * batch.targets.abs()) for batch in example)) for sign in (-1, 1)
            )
            if not _has_finite_loss(learner, task) and _has_finite_loss(learner, other):
                return f"{_why_not_finite(objective, task)}. {_advice(objective)}"
    return ""


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
    if objective.task_specific_classes:
        return "classes of each task's own"
    shared = "classes that all tasks share"
    return {"classes": shared, "labels": "any number of labels", "tokens": "running text"}.get(
        objective.predicts or "", "numbers"
    )


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
    if objective.task_specific_classes:
        return "Take one for classes, such as protonet, r2d2 or maml"
    if objective.predicts == "classes":
        return "Take one that learns classes which all tasks share, such as maml, reptile, r2d2 or cnp"
    if objective.predicts in ("values", "distribution"):
        return (
            "Take one for numbers, such as maml, reptile or cnp; or, if the numbers are names of classes, write "
            "target_type: classification in the source"
        )
    return "docs/choosing.md lists learners for these tasks"
