"""Values of tasks: not finite, constant, imbalanced, or inputs that reveal the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from kshot.checking.findings import Finding, Part, Severity
from kshot.checking.target_leakage import Rows, leaks, sorted_by_target
from kshot.types import Split, Task, tree_leaves

MOST_COLUMNS = 256
"""Number of features above which unnamed columns are not checked."""

Drawn = Mapping[Split, Sequence[Task]]


def check_values(part: Part, drawn: Drawn) -> list[Finding]:
    """Values that are not finite, constant targets, imbalanced classes, constant inputs."""
    findings = []
    for split, tasks in drawn.items():
        wrong = sum(not all(bool(leaf.isfinite().all()) for leaf in tree_leaves(task)) for task in tasks)
        if wrong:
            sentence = (
                f"{wrong} of {len(tasks)} tasks of {split} hold values that are not finite. Replace them by numbers, "
                "or leave the examples out."
            )
            findings.append(part.finding("error", "values", sentence))
    if not findings:
        findings.append(part.finding("ok", "values", "All values are finite."))
    rows = _rows(drawn.get("train", ()), inputs=False)
    if not part.source.objective.task_specific_classes and rows:
        constant = sum(bool((task.targets == task.targets[:1]).all()) for task in rows)
        if constant:
            share = constant / len(rows)
            severity: Severity = "error" if share == 1 else "warning" if share > 0.5 else "note"
            sentence = (
                f"In {constant} of {len(rows)} tasks of train every target is the same, so that nothing can be learned "
                "from them. Check the column of the target, or leave such groups out."
            )
            findings.append(part.finding(severity, "targets", sentence))
        targets = np.concatenate([task.targets for task in rows])
        share = float(targets.mean(0).max())
        if part.target_kind == "shared classes" and share > 0.9 and constant < len(rows):
            sentence = (
                f"{share:.1%} of the targets are of one class, so that always naming it is right that often. Compare "
                "accuracies with the baselines, or choose a rarer target."
            )
            findings.append(part.finding("warning", "imbalance", sentence))
    return findings + _constant_inputs(part, drawn)


def _constant_inputs(part: Part, drawn: Drawn) -> list[Finding]:
    table = part.columns
    findings = [
        part.finding("note", "columns", f"Column {column.name!r} is no input: {column.left_out}.")
        for column in (table.columns if table else ())
        if column.left_out
    ]
    columns = _columns(part, drawn)
    if columns:
        features = np.concatenate([task.features for task in _rows(drawn["train"])])
        same = (features == features[0]).all(0)
        constant = [repr(name) for name, indices in columns.items() if indices and same[indices].all()]
        if constant:
            names = ", ".join(constant[:5]) + (", …" if len(constant) > 5 else "")
            sentence = f"In the tasks looked at these inputs are constant: {names}. Leave them out."
            findings.append(part.finding("note", "columns", sentence))
    return findings


def check_reading(part: Part) -> list[Finding]:
    """How the columns of the file were understood, and what was noticed when it was read."""
    findings = [part.finding("warning", "reading", f"{note}.") for note in part.source.notes]
    if part.source.understood:
        columns = "; ".join(f"{name}: {how}" for name, how in part.source.understood.items())
        findings.append(part.finding("ok", "reading", f"The columns were understood as {columns}."))
    return findings


def check_leakage(part: Part, drawn: Drawn) -> list[Finding]:
    """Columns that reveal the target, and targets that are sorted in the file."""
    columns = _columns(part, drawn)
    if not columns:
        return []
    findings = []
    rows = _rows(drawn.get("train", ()))
    if part.target_kind == "shared classes":
        rows = _with_origin(part, drawn.get("train", ()), rows)
    for leak in leaks(rows, columns, part.target_kind):
        what = f"alone tells the target in {leak.score:.1%} of cases"
        if leak.same:
            what = "is the target under another name"
        elif part.target_kind == "numbers":
            what = f"alone ranks the targets of a task almost perfectly (rank correlation {leak.score:.3f})"
        todo = "Leave it out by ignore, unless it is known before the target is."
        findings.append(part.finding("error" if leak.same else "warning", "leakage", f"{leak.column!r} {what}. {todo}"))
    findings += _sorted_targets(part)
    return findings or [part.finding("ok", "leakage", "No input by itself reveals the target.")]


def _sorted_targets(part: Part) -> list[Finding]:
    classes = part.target_kind == "shared classes"
    groups = [targets.argmax(1) if classes else targets[:, 0] for targets in part.source.ordered_targets("train")]
    if sorted_by_target(groups) < 0.95:
        return []
    if getattr(part.source, "order", "") == "given":
        sentence = (
            "In their order of time, the targets of a group are sorted, so that the support never shows targets like "
            "those of its query. Make sure that the order is that of time."
        )
        return [part.finding("warning", "order", sentence)]
    sentence = (
        "In the file, the rows of a group are sorted by their target. Tasks draw rows at random, so that this does no "
        "harm, unless a column numbers the rows: leave such a column out."
    )
    return [part.finding("note", "order", sentence)]


def _columns(part: Part, drawn: Drawn) -> dict[str, list[int]]:
    """The names of input columns with their features' indices; empty if inputs are no rows, or differ in width."""
    tasks = drawn.get("train", ())
    if not are_rows(tasks) or part.source.texts is not None:
        return {}
    if (table := part.columns) is not None:
        index = {name: number for number, name in enumerate(table.features)}
        return {column.name: [index[name] for name in column.features] for column in table.columns if column.features}
    widths = {task.support.inputs.shape[1] for task in tasks}  # several where each task has columns of its own
    named = range(max(widths)) if len(widths) == 1 and max(widths) <= MOST_COLUMNS else ()
    return {f"input {number + 1}": [number] for number in named}


def are_rows(tasks: Sequence[Task]) -> bool:
    """Whether inputs and targets are rows of numbers, (n, F)."""
    return bool(tasks) and all(
        isinstance(leaf, Tensor) and leaf.ndim == 2 and leaf.is_floating_point()
        for leaf in (tasks[0].support.inputs, tasks[0].support.targets)
    )


def _rows(tasks: Sequence[Task], *, inputs: bool = True) -> list[Rows]:
    """Tasks as rows of features and targets without padding; without features if `inputs` is false."""
    rows = []
    for task in tasks:
        real = [batch.weight > 0 for batch in task]
        targets = torch.cat([batch.targets[mask] for batch, mask in zip(task, real)]).flatten(1)
        values = [batch.inputs[mask] for batch, mask in zip(task, real)] if inputs else [targets[:, :0]]
        rows.append(Rows(torch.cat(values).numpy(), targets.numpy(), int(real[0].sum())))
    return rows


def _with_origin(part: Part, tasks: Sequence[Task], rows: Sequence[Rows]) -> list[Rows]:
    """Training tasks with the origin of their rows."""
    units = part.source.units("train", range(len(tasks)))
    if units is not None and units.ndim == 1:
        return [own._replace(origin=np.full(len(own.targets), unit)) for own, unit in zip(rows, units)]
    found = []
    for index, (task, own) in enumerate(zip(tasks, rows)):
        of_task = None if units is None else part.source.example_rows("train", index)
        if of_task is not None:  # a very large task has lost its last examples
            pairs = zip(of_task, task)
            numbers = [numbers[: len(batch.weight)][batch.weight.numpy() > 0] for numbers, batch in pairs]
            own = own._replace(origin=np.concatenate(numbers))
        found.append(own)
    return found
