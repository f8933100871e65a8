"""Pictures of single tasks: support, query, and the predictions of a learner.

Shape legend: n examples, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.evaluation.report.style import BLUE, FAINT, GREEN, INK, MUTED, RED, WIDTH, canvas, quiet
from kshot.learner import evaluation_mode, predict_query
from kshot.learners.gradient.gradient_learner import GradientLearner
from kshot.objectives import gaussian
from kshot.types import Batch, Task, Tree, to

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 14  # images across the figure
PITCH = 1.36  # distance between rows of query images, in images; it leaves space for the mark
CLASSES, SUPPORT_ROWS, QUERY_ROWS = 10, 2, 3  # maximum shown of a task
UNKNOWN = (0.24, 0.36, 0.52)  # colour of pixels that are not shown: neither ink nor paper
MAX_STD = 0.5  # standard deviation of a fair coin between black and white


class Example(NamedTuple):
    """A task and the prediction for its query: logits (n, ways), or None without a learner."""

    task: Task
    prediction: Tensor | None


def classification_examples(tasks: Sequence[Example]) -> Figure:
    """Image tasks with predictions: a column for each class, support images above, query images below.

    A query image has a green frame and ✓ if it was classified correctly, a red frame and ✗ with the number of the
    predicted class if not, and a plain frame without a prediction. Only the first images are shown, all are counted.

    Args:
        tasks: images (n, C, H, W) in [0, 1], C = 1 or 3, with one-hot targets.

    Raises:
        ValueError: no tasks, or inputs of another shape.
    """
    if not tasks:
        raise ValueError("there are no example tasks to draw")
    for example in tasks:
        for batch in example.task:
            if batch.inputs.ndim != 4 or batch.inputs.shape[1] not in (1, 3):
                raise ValueError(f"images must be (n, 1 or 3, H, W), got {tuple(batch.inputs.shape)}")
    ways = min(max(example.task.query.targets.shape[1] for example in tasks), CLASSES)
    across = min(max(1, COLUMNS // (ways + 1)), len(tasks))
    down = math.ceil(len(tasks) / across)
    support = max(_rows(example.task.support, SUPPORT_ROWS) for example in tasks)
    lines = support + 0.2 + PITCH * max(_rows(example.task.query, QUERY_ROWS) for example in tasks)
    cell = min((WIDTH - 0.5) / (across * (ways + 0.9)), 0.75)  # inches
    figure = canvas(down * (cell * (lines + 0.4) + 0.4))
    grid = figure.subplots(down, across, squeeze=False).flat
    for number, axes in enumerate(grid, 1):
        axes.set_axis_off()
        axes.set_aspect("equal")
        if number <= len(tasks):
            _draw_task(axes, tasks[number - 1], f"task {number}")
        axes.set_xlim(-0.75, ways)
        axes.set_ylim(lines, -0.4)
    return figure


def regression_examples(learner: GradientLearner, tasks: Sequence[Task], *, steps: Sequence[int] = (0, 1, 5)) -> Figure:
    """One-dimensional tasks before and after a few gradient steps: support points, true curve and predictions.

    Args:
        learner: used in evaluation mode and left unchanged.
        tasks: tasks with inputs and targets (n, 1); curves are drawn through the query points, best through many.
        steps: numbers of inner steps to draw.

    Raises:
        ValueError: no tasks, or tasks that are not one-dimensional.
    """
    _check_one_dimensional(tasks)
    figure = canvas(3.3)
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    with evaluation_mode(learner):
        for number, (axes, task) in enumerate(zip(panels, tasks), 1):
            quiet(axes, f"task {number}")
            _draw_curves(axes, learner, task, steps)
    return figure


def predictive_bands(tasks: Sequence[Task], predictions: Mapping[str, Sequence[Tree]]) -> Figure:
    """Predicted mean and 95 % band of one-dimensional tasks, in a column for each task and a row for each learner.

    Support points are dark, query points pale; panels are titled with the log-likelihood of these, in nats per point.

    Args:
        tasks: tasks with inputs and targets (n, 1); bands are drawn through the query points, best through many.
        predictions: learner -> {"mean": (m, 1), "std": (m, 1)} for each task's query.

    Raises:
        ValueError: no tasks, or tasks that are not one-dimensional.

    Example:
        >>> from kshot.sources.functions import gaussian_processes
        >>> source = gaussian_processes()
        >>> known = [source.posterior("test", index) for index in range(2)]
        >>> len(predictive_bands([source.task("test", index) for index in range(2)], {"posterior": known}).axes)
        2
    """
    _check_one_dimensional(tasks)
    figure = canvas(0.3 + 1.9 * len(predictions))
    panels = figure.subplots(len(predictions), len(tasks), sharex="col", sharey="col", squeeze=False)
    for row, (name, of_tasks) in zip(panels, predictions.items()):
        for number, (axes, task, prediction) in enumerate(zip(row, tasks, of_tasks), 1):
            likelihood = float(gaussian.metrics(prediction, task.query)["log_likelihood"])
            quiet(axes, f"{name}, task {number}: {likelihood:.2f}")
            _draw_band(axes, task, prediction)
    return figure


class Completion(NamedTuple):
    """An image (C, H, W), the mask of its known pixels (H, W), and the predicted mean and std (C, H, W) of all."""

    image: Tensor
    known: Tensor
    mean: Tensor
    std: Tensor


def completions(columns: Sequence[Sequence[Completion]]) -> Figure:
    """Completions of images from more and more pixels: a column for each image, which is at the top.

    Below it are, for each number of pixels, which must be the same in all columns: the known pixels on blue, the
    predicted mean of every pixel, and the standard deviation, bright where the prediction is uncertain.
    """
    lengths = {len(column) for column in columns}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"all images need the same number of completions, and at least one, got {sorted(lengths)}")
    (rows,) = lengths
    tall = 1.25 + 3.25 * rows
    cell = min((WIDTH - 0.2) / (len(columns) + 1.6), 1.0)  # inches
    figure = canvas(cell * tall + 0.15)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_aspect("equal")
    side: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 8.5, "color": MUTED}
    axes.text(-0.15, 0.46, "image", **side)
    for row, example in enumerate(columns[0]):
        top = 1.25 + 3.25 * row
        axes.text(-0.15, top + 0.46, f"{int(example.known.sum())} known\npixels", **side | {"color": INK})
        axes.text(-0.15, top + 1.46, "completed", **side)
        axes.text(-0.15, top + 2.46, "uncertainty", **side)
    for x, column in enumerate(columns):
        draw_image(axes, column[0].image, x, 0)
        for row, example in enumerate(column):
            top = 1.25 + 3.25 * row
            image = example.image.detach().cpu().expand(3, -1, -1)
            ground = torch.tensor(UNKNOWN)[:, None, None].expand_as(image)
            draw_image(axes, torch.where(example.known, image, ground), x, top)
            draw_image(axes, example.mean, x, top + 1)
            draw_image(axes, example.std.mean(0, keepdim=True) / MAX_STD, x, top + 2)
    axes.set_xlim(-1.6, len(columns))
    axes.set_ylim(tall, -0.05)
    return figure


def _draw_band(axes: Axes, task: Task, prediction: Tree) -> None:
    (x, y), support = _points(task.query), _points(task.support)
    order, keep = x.argsort(), task.query.weight > 0
    mean, std = (prediction[name][keep, 0].detach().cpu()[order] for name in ("mean", "std"))
    x, y = x[order], y[order]
    axes.fill_between(x, mean - 1.96 * std, mean + 1.96 * std, color=BLUE, alpha=0.22, linewidth=0, gid="band")
    axes.plot(x, mean, color=BLUE, linewidth=1.5, gid="mean")
    axes.plot(x, y, "o", color=MUTED, alpha=0.45, markersize=2.2, markeredgewidth=0, zorder=3, gid="query")
    axes.plot(*support, "o", color=INK, markersize=4.2, zorder=4, gid="support")
    span = float(y.max() - y.min())
    axes.set_ylim(float(y.min()) - 0.35 * span, float(y.max()) + 0.35 * span)


def _points(batch: Batch) -> tuple[Tensor, Tensor]:
    keep = batch.weight > 0
    return batch.inputs[keep, 0].cpu(), batch.targets[keep, 0].cpu()


def _check_one_dimensional(tasks: Sequence[Task]) -> None:
    if not tasks:
        raise ValueError("there are no example tasks to draw")
    for task in tasks:
        if any(leaf.ndim != 2 or leaf.shape[1] != 1 for batch in task for leaf in (batch.inputs, batch.targets)):
            got = f"{tuple(task.query.inputs.shape)} and {tuple(task.query.targets.shape)}"
            raise ValueError(f"inputs and targets must be (n, 1) to be drawn as curves, got {got}")


def _draw_curves(axes: Axes, learner: GradientLearner, task: Task, steps: Sequence[int]) -> None:
    device = next(learner.parameters()).device
    keep = task.query.weight > 0
    x, y = _points(task.query)
    order = x.argsort()
    axes.plot(x[order], y[order], color="#c9d0d8", linewidth=5, solid_capstyle="round", label="truth", zorder=1)
    points = _points(task.support)
    axes.plot(*points, "o", color=INK, markersize=5, label=f"support, {len(points[0])} points", zorder=5)
    dashes = [(0, (1, 1.5)), (0, (4, 1.5)), "-"]
    for rank, count in enumerate(steps):
        state = learner.adapt(to(task.support, device), steps=count)
        predicted = predict_query(learner, state, to(task.query, device)).cpu()[keep, 0]
        error = float((predicted - y).square().mean())
        late = rank / max(len(steps) - 1, 1)
        style: dict[str, Any] = {"color": BLUE, "alpha": 0.5 + 0.5 * late, "linestyle": dashes[min(round(2 * late), 2)]}
        label = f"{count} step{'s' * (count != 1)}, mse {error:.3g}"
        axes.plot(x[order], predicted[order], **style, linewidth=1.4 + 0.6 * late, label=label, zorder=2 + late)
    legend: dict[str, Any] = {
        "loc": "upper left",
        "bbox_to_anchor": (0, -0.1),
        "borderaxespad": 0.4,
        "handlelength": 2.2,
    }
    axes.legend(**legend, frameon=False, fontsize=9, labelcolor=INK)


def _rows(batch: Batch, most: int) -> int:
    """Number of rows of images for a batch: its examples of the most frequent class, up to `most`."""
    return min(most, max(map(len, _by_class(batch))))


def _by_class(batch: Batch) -> list[list[int]]:
    """Indices of each class's examples, without padding."""
    labels, ways = batch.targets.argmax(1), min(batch.targets.shape[1], CLASSES)
    return [((labels == label) & (batch.weight > 0)).nonzero().flatten().tolist() for label in range(ways)]


def _draw_task(axes: Axes, example: Example, name: str) -> None:
    from matplotlib.patches import Rectangle

    (support, query), ways = example.task, example.task.query.targets.shape[1]
    more = f", first {CLASSES} of {ways} classes" if ways > CLASSES else ""
    predicted = hit = None
    if example.prediction is not None:
        predicted = example.prediction.argmax(1).cpu()
        hit = predicted == query.targets.argmax(1).cpu()
        real = query.weight.cpu() > 0
        name = f"{name}: {int(hit[real].sum())} of {int(real.sum())} right"
    axes.set_title(f"{name}{more}", loc="left", fontsize=9.5, color=INK, pad=4)
    plain: dict[str, Any] = {"fill": False, "edgecolor": FAINT, "linewidth": 0.8}
    for way, rows in enumerate(_by_class(support)):
        if not rows:
            continue  # the task has fewer classes
        axes.text(way + 0.46, -0.06, str(way + 1), ha="center", va="bottom", fontsize=9, color=MUTED)
        for line, row in enumerate(rows[:SUPPORT_ROWS]):
            draw_image(axes, support.inputs[row], way, line)
            axes.add_patch(Rectangle((way, line), 0.92, 0.92, **plain))
    top = _rows(support, SUPPORT_ROWS)
    side: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "center", "fontsize": 8, "color": MUTED}
    axes.text(-0.12, top / 2, "support", **side)
    below = _rows(query, QUERY_ROWS)
    axes.text(-0.12, top + 0.2 + (PITCH * below - 0.4) / 2, "query", **side)
    for way, rows in enumerate(_by_class(query)):
        for line, row in enumerate(rows[:QUERY_ROWS]):
            y = top + 0.2 + PITCH * line
            draw_image(axes, query.inputs[row], way, y)
            if hit is None or predicted is None:
                axes.add_patch(Rectangle((way, y), 0.92, 0.92, **plain))
                continue
            gid, colour, mark = ("right", GREEN, "✓") if hit[row] else ("wrong", RED, f"✗ {int(predicted[row]) + 1}")
            frame = plain | {"edgecolor": colour, "linewidth": 1.8, "gid": gid}
            axes.add_patch(Rectangle((way, y), 0.92, 0.92, **frame))
            axes.text(way + 0.46, y + 1.0, mark, ha="center", va="top", fontsize=8.5, color=colour)


def draw_image(axes: Axes, image: Tensor, x: float, y: float) -> None:
    """An image (C, H, W) on a 0.92 × 0.92 square whose upper left corner is (x, y)."""
    pixels = np.clip(image.detach().cpu().float().movedim(0, -1).numpy(), 0, 1)
    box = (x, x + 0.92, y + 0.92, y)
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1} if pixels.shape[-1] == 1 else {}
    axes.imshow(pixels.squeeze(-1) if grey else pixels, extent=box, interpolation="nearest", **grey)
