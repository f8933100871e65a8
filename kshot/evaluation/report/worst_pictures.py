"""Pictures of the tasks that a learner did worst on, with the names of their classes.

Shape legend: n examples, C channels, H height, W width.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from kshot.evaluation.report.cells import Cell, draw_cells
from kshot.evaluation.report.label_pictures import labelled
from kshot.evaluation.report.style import BLUE, FAINT, INK, MUTED, RED, canvas, quiet
from kshot.types import Task, Tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES, MOST_WRONG = 10, 10
"""The largest numbers of classes and of queries shown."""
MOST_WINDOWS = 3


def misclassified(task: Task, prediction: Tensor, names: Sequence[str]) -> Figure:
    """A support image of each class with its name, and below it the query images that were classified wrongly.

    If there are more classes than can be shown, those are which were confused.

    Args:
        task: images (n, C, H, W) in [0, 1], C = 1 or 3, with one-hot targets.
        prediction: logits (n, ways).
        names: of the classes, in the order of the targets.
    """
    support, query = task
    true, predicted = query.targets.argmax(1), prediction.argmax(1)
    sure = prediction.double().softmax(1).max(1).values
    wrong = ((true != predicted) & (query.weight > 0)).nonzero()[:, 0]
    wrong = wrong[sure[wrong].argsort(descending=True)].tolist()[:MOST_WRONG]
    involved = list(dict.fromkeys(number for row in wrong for number in (int(true[row]), int(predicted[row]))))
    ways = range(len(names)) if len(names) <= MOST_CLASSES else sorted(involved[:MOST_CLASSES])
    of_support = support.targets.argmax(1)
    shown = [(k, ((of_support == k) & (support.weight > 0)).nonzero()[:, 0].tolist()) for k in ways]
    known = [Cell(support.inputs[rows[0]], _lines(names[k]), FAINT, INK) for k, rows in shown if rows]
    answers = [*names, *["none of them"] * (prediction.shape[1] - len(names))]
    mistakes = []
    for row in wrong:
        name, answer = answers[int(true[row])], answers[int(predicted[row])]
        mistakes.append(Cell(query.inputs[row], f"{_lines(f'is {name}')}\n{_lines(f'✗ {answer}')}", RED, RED))
    return draw_cells({"support": known, "wrong": mistakes})


def _lines(name: str, width: int = 20, most: int = 2) -> str:
    lines = textwrap.wrap(name.replace("_", " "), width, max_lines=most, placeholder="…")
    return "\n".join(lines)


def forecasts(task: Task, prediction: Tree) -> Figure:
    """The windows that were forecast worst: the past, the future and the forecast, a panel for each.

    Args:
        task: inputs (n, C, 1 + V), the past first, and targets (n, H).
        prediction: the forecast (n, H).
    """
    errors = (prediction - task.query.targets).abs().mean(1) * (task.query.weight > 0)
    order = errors.argsort(descending=True)[:MOST_WINDOWS].tolist()
    figure = canvas(2.7)
    panels = figure.subplots(1, len(order), sharey=True, squeeze=False)[0]
    for axes, row in zip(panels, order):
        past, future = task.query.inputs[row, :, 0], task.query.targets[row]
        quiet(axes, f"mean error {float(errors[row]):.3g}", xlabel="steps from the forecast's start")
        axes.plot(np.arange(-len(past), 0), past, color=MUTED, linewidth=1.1)
        axes.plot(np.arange(len(future)), future, color=INK, linewidth=1.6, label="truth")
        axes.plot(np.arange(len(future)), prediction[row], color=BLUE, linewidth=1.6, linestyle="--", label="forecast")
        axes.axvline(-0.5, color=FAINT, linewidth=1)
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, frameon=False, fontsize=9, labelcolor=INK, ncols=2, loc="outside lower left")
    return figure


def curve(task: Task, prediction: Tree) -> Figure:
    """A task with one input and one target: support, query, and the prediction for it."""
    mean = prediction["mean"] if isinstance(prediction, dict) else prediction
    figure = canvas(2.7)
    axes = figure.subplots()
    quiet(axes, "", xlabel="input", ylabel="target")
    order = task.query.inputs[:, 0].argsort()
    x, real = task.query.inputs[order, 0], task.support.weight > 0
    axes.plot(x, mean[order, 0], color=BLUE, linewidth=1.6, label="predicted", marker=".", gid="predicted")
    axes.plot(x, task.query.targets[order, 0], ".", color=MUTED, label="query", gid="query")
    axes.plot(
        task.support.inputs[real, 0], task.support.targets[real, 0], "o", color=INK, label="support", markersize=5
    )
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, ncols=3)
    return figure


def picture_of(
    task: Task, prediction: Tree, names: Sequence[str], *, forecast: bool, predicts: str | None = None
) -> Figure | None:
    """The picture that suits a task; None if none does. `predicts` is that of the objective."""
    inputs, targets = task.query.inputs, task.query.targets
    if not isinstance(inputs, Tensor):
        return None
    if predicts == "labels":
        drawable = inputs.ndim == 4 and inputs.shape[1] in (1, 3) and names
        return labelled(task, prediction, names, wrong_only=True) if drawable else None
    if inputs.ndim == 4 and inputs.shape[1] in (1, 3) and names:
        return misclassified(task, prediction, names)
    if forecast and isinstance(prediction, Tensor):
        return forecasts(task, prediction)
    if inputs.ndim == 2 and inputs.shape[1] == 1 and targets.shape[1:] == (1,) and not names:
        return curve(task, prediction)
    return None
