"""Audits of an evaluation: whether its figures can be trusted. They run with every evaluation, and can fail it.

Each audit checks for one of the silent mistakes of few-shot code. Invariances that must hold exactly are tested on a
copy of the learner in double precision (`invariance.py`). Statistical tests use bounds under which a correct evaluation
fails once in 100 000 times, for any learner and any number of tasks (`chance.py`). The examples of tasks are compared
by content (`leakage.py`).
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
from kshot.evaluation.audit.findings import Audit, Evidence, Question, Result, score_again, stream, task_contents
from kshot.evaluation.audit.invariance import ROUNDED, Probe, other_queries, padding, query_order, support_order
from kshot.evaluation.audit.leakage import CHUNK, Contents, QueryWeights, redrawn, splits, test_reads
from kshot.learner import Learner
from kshot.tasks.source import TaskSource, short_hash
from kshot.training.checkpoint import WEIGHTS
from kshot.types import Split, to, tree_leaves

FEW = 2  # tasks of the invariance audits
QUERIES = 16  # queries of each of those
PAIRED = 32  # tasks scored again with their classes in another order
FOREIGN = 100  # tasks whose queries are predicted from another task's support
REDRAWN = 200  # tasks that are drawn a second time, and whose examples are compared

REPEATABLE = Question("repeatable", "Does a task get the same loss if it is scored again, after others?")
PURITY = Question("purity", "Are weights and buffers the same after all tasks as before the first?")
FINITE = Question("finite", "Are predictions and figures finite?")
METRIC = Question("metric", "Does each metric agree with its definition?")
ONE_CHECKPOINT = Question("one checkpoint", "Does the figure come from the weights of one checkpoint?")


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
    return [audit for audit in audits if audit.result is Result.FAILED]


def run_audits(
    learner: Learner, source: TaskSource, split: Split, evidence: Evidence, checkpoint: Path | None = None
) -> tuple[Audit, ...]:
    """Audit an evaluation on the first tasks of a split, with the learner in evaluation mode and without gradients.

    The evaluated tasks are read again, and, to compare examples, some tasks of the other splits; those of "test" only
    if it is the evaluated split. The weights are compared with those in the folder `checkpoint`, if given.
    """
    purity = _purity(learner, evidence)  # before the learner is used again
    tasks = [task._replace(query=task.query.rows(slice(QUERIES))) for task, _ in evidence.first]
    repeatable = _repeatable(learner, source, evidence)
    probe = Probe.of(learner, tasks)
    class_order = ClassOrder(learner, source, split, probe, evidence)
    label_order, chance = LabelOrder(source), Chance(learner, split, tasks)
    contents, weights, device = Contents(source), QueryWeights(source), tasks[0].support.weight.device
    hashes = [(number, short_hash(source.task(split, number))) for number in range(len(tasks))]
    for number, task in stream(source, split, min(REDRAWN, len(evidence.episodes)), chunk=CHUNK):
        hashes.append((number, short_hash(task)))
        examples = task_contents(task)
        contents.see(task, examples)
        weights.see(task)
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
        weights.audit(),
        contents.audit(),
        splits(source, split, contents),
        redrawn(evidence, hashes),
        repeatable,
        purity,
        _finite(learner.objective, evidence),
        _metric(learner.objective, evidence),
        _one_checkpoint(learner, checkpoint),
        test_reads(source, split, learner),
    )


def _repeatable(learner: Learner, source: TaskSource, evidence: Evidence) -> Audit:
    worst = 0.0
    for number, (task, _) in reversed(list(enumerate(evidence.first))):
        loss, before = score_again(learner, task, source.seed, number), evidence.figures["loss"][number]
        same = loss == before or (math.isnan(loss) and math.isnan(before))
        worst = worst if same else max(worst, abs(loss - before) / max(abs(before), 1e-8))
    finding = (
        f"{len(evidence.first)} tasks were scored again, in another order and with the same random numbers: their "
        f"loss changes by at most {worst:.2g} of its size."
    )
    return REPEATABLE.judge(worst, ROUNDED, finding, "accelerators may sum in another order")


def _purity(learner: Learner, evidence: Evidence) -> Audit:
    changed = int(fingerprint(learner) != evidence.weights)
    finding = "Weights and buffers are bitwise the same as before the first task."
    if changed:
        finding = "Weights or buffers are not those from before the first task: adapting or predicting changed them."
    return PURITY.judge(changed, 0, finding, "a task that changes the learner changes the figures of the next")


def _finite(objective: objectives.Objective, evidence: Evidence) -> Audit:
    num_tasks, predictions = len(evidence.episodes), [prediction for _, prediction in evidence.first]
    figures, num_infinite = dict(evidence.figures), 0
    if objective.predicts == "classes" and not objective.task_specific_classes and len(figures) > 1:
        num_infinite = figures["loss"].count(math.inf)
        figures["loss"] = [0.0 if loss == math.inf else loss for loss in figures["loss"]]
    bad_figures = sum(not all(map(math.isfinite, of_task)) for of_task in zip(*figures.values()))
    bad_predictions = sum(not all(bool(leaf.isfinite().all()) for leaf in tree_leaves(tree)) for tree in predictions)
    finding = (
        f"{bad_figures} of {num_tasks} tasks have a loss or metric that is NaN or infinite; of {len(predictions)} "
        f"tasks all predictions were examined, and {bad_predictions} of them contain such values."
    )
    if num_infinite:
        finding += (
            f" The log loss of {num_infinite} tasks is infinite, as where a class that the support set lacks has "
            "probability 0, and occurs; other metrics are not."
        )
    return FINITE.judge(max(bad_figures, bad_predictions), 0, finding, "NaN is not a figure")


def _metric(objective: objectives.Objective, evidence: Evidence) -> Audit:
    """Recompute accuracy, mse and the F1 and errors of labels by NumPy."""
    of_numbers = objective in (objectives.mse, objectives.gaussian)
    formulas = {"accuracy": _accuracy} | ({"mse": _mse} if of_numbers else {})
    if objective == objectives.multilabel:
        formulas |= {"micro_f1": _micro_f1, "hamming_loss": _hamming_loss}
    of_symbols = objective == objectives.next_token
    if of_symbols:
        formulas |= {"bits_per_character": _bits_per_character}
    known = [metric for metric in formulas if metric in evidence.figures]
    worst = 0.0
    for number, (task, prediction) in enumerate(evidence.first):
        if objective == objectives.gaussian:
            prediction = prediction["mean"]
        values = prediction, task.query.targets, task.query.weight
        shape = prediction.shape[: -1 if of_symbols else None] if isinstance(prediction, Tensor) else None
        if not known or shape != values[1].shape:
            return METRIC.idle("These metrics, or predictions of this form, have no definition here to compare with.")
        for metric in known:
            expected = formulas[metric](*(leaf.double().cpu().numpy() for leaf in values))
            worst = max(worst, abs(expected - evidence.figures[metric][number]) / max(1.0, abs(expected)))
    finding = (
        f"On {len(evidence.first)} tasks, {' and '.join(known)} were computed again by the definition, and differ by "
        f"at most {worst:.2g} of their size."
    )
    return METRIC.judge(worst, 1e-5, finding, "rounding of a mean in single precision is smaller")


def _accuracy(prediction: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> float:
    return float(np.average(prediction.argmax(-1) == targets.argmax(-1), weights=weight))


def _mse(prediction: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> float:
    return float(np.average(np.square(prediction - targets).reshape(len(weight), -1).mean(1), weights=weight))


def _bits_per_character(prediction: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> float:
    largest = prediction.max(-1, keepdims=True)
    bits = np.log2(np.exp(prediction - largest).sum(-1)) + largest[..., 0] * math.log2(math.e)
    symbols = targets.astype(np.int64)
    bits -= np.take_along_axis(prediction, np.maximum(symbols, 0)[..., None], -1)[..., 0] * math.log2(math.e)
    scored = (symbols >= 0) * weight[:, None]
    return float((bits * scored).sum() / max(scored.sum(), 1e-12))


def _micro_f1(prediction: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> float:
    predicted, true = prediction > 0, targets >= 0.5
    size = float(weight @ (predicted.sum(1) + true.sum(1)))
    return 2 * float(weight @ (predicted & true).sum(1)) / size if size else 1.0


def _hamming_loss(prediction: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> float:
    return float(np.average(((prediction > 0) != (targets >= 0.5)).mean(1), weights=weight))


def _one_checkpoint(learner: Learner, checkpoint: Path | None) -> Audit:
    registered = set(learner.modules())
    hidden = [m for m in _plain_attributes(learner) if m not in registered and next(m.parameters(), None) is not None]
    inner = [module for module in registered if isinstance(module, Learner) and module is not learner]
    members = [one for one in inner if not any(one in set(other.modules()) for other in inner if other is not one)]
    declared, found = getattr(learner, "num_members", 1), max(len(members), 1)
    count, finding = 1, "There is one learner, and its state holds all of its weights."
    if found > 1 and found == declared:
        finding = f"The learner declares itself an ensemble of {declared}, and its state holds all of its members."
    if found != declared:
        count = max(found, declared)
        finding = f"The learner contains {found} separate learners, and declares {declared} (num_members)."
    elif hidden:
        count = 1 + len(hidden)
        finding = f"{len(hidden)} modules with weights are in plain attributes, which no checkpoint contains."
    elif checkpoint is not None:
        stored, state = load_file(checkpoint / WEIGHTS), learner.state_dict()
        same = stored.keys() == state.keys() and all(torch.equal(stored[key], state[key].cpu()) for key in stored)
        count = 1 if same else 2
        finding += f" Its weights are bitwise {'equal to' if same else 'different from'} checkpoint {checkpoint.name}."
    return ONE_CHECKPOINT.judge(count, 1, finding, "an ensemble is reported as such, and all else as one learner")


_OF_MODULES = set(vars(nn.Module()))


def _plain_attributes(learner: Learner) -> Iterator[nn.Module]:
    """Modules in plain attributes, or in lists, tuples and dicts there."""
    for module in learner.modules():
        for key, value in vars(module).items():
            if key in _OF_MODULES:
                continue
            entries = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            yield from (entry for entry in (value, *entries) if isinstance(entry, nn.Module))
