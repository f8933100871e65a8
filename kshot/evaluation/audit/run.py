"""Audits: whether a figure was come by honestly. They run with every evaluation, and can fail it.

Each looks for one of the mistakes that few-shot code makes in silence. What must not matter at all is asked of a copy
of the learner in double precision, where rounding is far below any true effect (`invariance.py`). What chance may move
is judged by bounds under which an honest figure fails once in 100 000 times, for any learner and any number of tasks
(`chance.py`). What the tasks hold is compared by content (`leakage.py`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kshot import objectives
from kshot.evaluation.audit.chance import Chance, ClassOrder, LabelOrder
from kshot.evaluation.audit.findings import Audit, Evidence, Result, idle, judged, stream, task_contents
from kshot.evaluation.audit.invariance import ROUNDED, Probe, other_queries, padding, query_order, support_order
from kshot.evaluation.audit.leakage import Contents, Drawn, splits, test_reads
from kshot.learner import Learner
from kshot.tasks.source import TaskSource
from kshot.training.checkpoint import WEIGHTS
from kshot.training.fit import seeded
from kshot.types import Split, to, tree_leaves

FEW = 2  # tasks on which a learner is asked again and again
QUERIES = 16  # of each of those
PAIRED = 32  # tasks scored again with their classes in another order
FOREIGN = 100  # tasks whose queries are predicted from another task's support
DRAWN = 200  # tasks that are drawn a second time, and whose examples are compared


class UntrustedFigure(UserWarning):
    """An audit failed: the figures of an evaluation are not to be trusted."""


def fingerprint(module: nn.Module) -> str:
    """A hash of all parameters and buffers of a module."""
    digest = hashlib.sha256()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def failures(audits: Sequence[Audit]) -> list[Audit]:
    """Those that failed."""
    return [audit for audit in audits if audit.result is Result.FAILED]


def run_audits(
    learner: Learner, source: TaskSource, split: Split, evidence: Evidence, checkpoint: Path | None = None
) -> tuple[Audit, ...]:
    """Audit an evaluation of the first tasks of a split, with the learner in evaluation mode and without gradients.

    It reads the tasks of the evaluation again, and, to compare examples, some of the other splits; "test" only where
    that is the split that was evaluated.

    Args:
        learner: as it was evaluated.
        source: of the tasks.
        split: where they came from.
        evidence: what the evaluation left.
        checkpoint: the folder of the checkpoint that the learner was loaded from, where it was.
    """
    purity = _purity(learner, evidence)  # before anything else is asked of the learner
    tasks = [task._replace(query=task.query.rows(slice(QUERIES))) for task, _ in evidence.first]
    repeatable = _repeatable(learner, source, evidence)
    probe = Probe.of(learner, tasks)
    class_order = ClassOrder(learner, source, split, probe, evidence)
    label_order, chance = LabelOrder(source), Chance(learner, split, tasks)
    drawn, contents = Drawn(evidence), Contents(source)
    device = tasks[0].support.weight.device
    for number in range(len(tasks)):
        drawn.see(number, source.task(split, number))
    for number, task in stream(source, split, min(DRAWN, len(evidence.episodes))):
        drawn.see(number, task)
        examples = task_contents(task)
        contents.see(task, examples)
        label_order.see(task, examples)
        if number < PAIRED:
            class_order.see(number, to(task, device))
        if number < FOREIGN:
            chance.see(number, to(task, device))
    return (
        other_queries(probe),
        query_order(probe),
        support_order(probe),
        padding(probe),
        class_order.audit(),
        label_order.audit(),
        chance.audit(),
        contents.audit(),
        splits(source, split, contents),
        drawn.audit(),
        repeatable,
        purity,
        _finite(evidence),
        _metric(learner.objective, evidence),
        _one_checkpoint(learner, checkpoint),
        test_reads(source, split),
    )


def _repeatable(learner: Learner, source: TaskSource, evidence: Evidence) -> Audit:
    name, asks = "repeatable", "Is a task scored the same when it is scored again, after others?"
    worst = 0.0
    for number, (task, _) in reversed(list(enumerate(evidence.first))):
        with seeded(source.seed, number, device=task.support.weight.device):
            prediction = learner.predict(learner.adapt(task.support), task.query.inputs)
        loss, before = float(learner.objective.loss(prediction, task.query)), evidence.figures["loss"][number]
        same = loss == before or (math.isnan(loss) and math.isnan(before))
        worst = worst if same else max(worst, abs(loss - before) / max(abs(before), 1e-8))
    found = f"The loss changes by {worst:.2g} of its size at most."
    return judged(name, asks, worst, ROUNDED, found, "accelerators may add in another order")


def _purity(learner: Learner, evidence: Evidence) -> Audit:
    changed = int(fingerprint(learner) != evidence.weights)
    found = f"Weights and buffers are {'not what they were' if changed else 'bitwise what they were'} before."
    return judged(
        "purity", "Are weights and buffers the same after all tasks as before the first?", changed, 0, found,
        "a task that changes the learner changes what is measured on the next",
    )  # fmt: skip


def _finite(evidence: Evidence) -> Audit:
    count, predictions = len(evidence.episodes), [prediction for _, prediction in evidence.first]
    bad = sum(not all(map(math.isfinite, figures)) for figures in zip(*evidence.figures.values()))
    wild = sum(not all(bool(leaf.isfinite().all()) for leaf in tree_leaves(tree)) for tree in predictions)
    found = f"Figures of {bad} of {count} tasks, and predictions of {wild} of {len(predictions)}, are not finite."
    return judged("finite", "Are predictions and figures finite?", max(bad, wild), 0, found, "NaN is no figure")


def _metric(objective: objectives.Objective, evidence: Evidence) -> Audit:
    name, asks = "metric", "Does a metric agree with its definition, computed anew?"
    of_numbers = objective in (objectives.mse, objectives.gaussian)
    formulas = {"accuracy": _accuracy} | ({"mse": _mse} if of_numbers else {})
    known = [metric for metric in formulas if metric in evidence.figures]
    worst = 0.0
    for number, (task, prediction) in enumerate(evidence.first):
        if objective == objectives.gaussian:
            prediction = prediction["mean"]
        values = prediction, task.query.targets, task.query.weight
        if not known or not isinstance(prediction, Tensor) or prediction.shape != values[1].shape:
            return idle(name, asks, "No definition is known for these metrics or predictions.")
        for metric in known:
            again = formulas[metric](*(leaf.double().cpu().numpy() for leaf in values))
            worst = max(worst, abs(again - evidence.figures[metric][number]) / max(1.0, abs(again)))
    found = f"{' and '.join(known)} of {len(evidence.first)} tasks differ by {worst:.2g} at most."
    return judged(name, asks, worst, 1e-5, found, "a mean in single precision is rounded by less")


def _accuracy(prediction: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> float:
    return float(np.average(prediction.argmax(-1) == targets.argmax(-1), weights=weight))


def _mse(prediction: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> float:
    return float(np.average(np.square(prediction - targets).reshape(len(weight), -1).mean(1), weights=weight))


def _one_checkpoint(learner: Learner, checkpoint: Path | None) -> Audit:
    name, asks = "one checkpoint", "Does the figure come from the weights of one checkpoint?"
    known = set(learner.modules())
    hidden = [module for module in _hidden(learner) if module not in known and any(True for _ in module.parameters())]
    inner = [module for module in known if isinstance(module, Learner) and module is not learner]
    side_by_side = [one for one in inner if not any(one in set(other.modules()) for other in inner if other is not one)]
    members, found = 1, "One learner, all its weights in its state."
    if len(side_by_side) > 1:
        members, found = len(side_by_side), f"{len(side_by_side)} learners stand side by side in it: an ensemble."
    elif hidden:
        members = 1 + len(hidden)
        found = f"{len(hidden)} modules with weights hide in attributes, where no checkpoint holds them."
    elif checkpoint is not None:
        stored, here = load_file(checkpoint / WEIGHTS), learner.state_dict()
        same = stored.keys() == here.keys() and all(torch.equal(stored[key], here[key].cpu()) for key in stored)
        members = 1 if same else 2
        found = f"The weights are {'those' if same else 'not those'} of checkpoint {checkpoint.name}, bitwise."
    return judged(name, asks, members, 1, found, "what is told is one learner's figure")


_OF_MODULES = set(vars(nn.Module()))


def _hidden(learner: Learner) -> Iterator[nn.Module]:
    """Modules that stand in plain attributes, or in lists, tuples and dicts there."""
    for module in learner.modules():
        for key, value in vars(module).items():
            if key in _OF_MODULES:
                continue
            entries = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            yield from (entry for entry in (value, *entries) if isinstance(entry, nn.Module))
