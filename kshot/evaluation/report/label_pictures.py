"""Pictures of images with several labels: true ones, and those that a learner predicts.

Shape legend: n images, C labels.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kshot.evaluation.report.narrow import CELLS
from kshot.evaluation.report.style import FAINT, GREEN, INK, RED, canvas
from kshot.evaluation.report.task_pictures import draw_image
from kshot.types import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS, MOST = 5, 10
"""Images in a row, and the largest number of support and of query images shown."""


def labelled(task: Task, prediction: Tensor, names: Sequence[str], *, wrong_only: bool = False) -> Figure:
    """Support images with their labels, and below them query images: labels found, [missed], and ✗ wrong.

    Args:
        task: images (n, 1 or 3, H, W) in [0, 1], with multi-hot targets.
        prediction: logits (n, C).
        names: of the labels, in the order of the targets.
        wrong_only: whether only queries with a wrong label are shown, the largest loss first.
    """
    support, query = task
    true, predicted = query.targets >= 0.5, prediction > 0
    wrong = (true != predicted).any(1) & (query.weight > 0)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(prediction, query.targets, reduction="none").mean(1)
    rows = [row for row in loss.argsort(descending=True).tolist() if wrong[row]] if wrong_only else range(len(loss))
    known = [
        (_listed(name for name, has in zip(names, support.targets[row].tolist()) if has), FAINT, support.inputs[row])
        for row in (support.weight > 0).nonzero()[:MOST, 0].tolist()
    ]
    answers = []
    for row in rows[:MOST]:
        marks = {(True, True): "{}", (True, False): "[{}]", (False, True): "✗ {}"}
        pairs = zip(names, zip(true[row].tolist(), predicted[row].tolist()))
        words = _listed(marks[pair].format(name) for name, pair in pairs if pair in marks)
        answers.append((words, RED if wrong[row] else GREEN, query.inputs[row]))
    bands = [cells for cells in (known, answers) if cells]
    heights = [math.ceil(len(cells) / ACROSS) for cells in bands]
    figure = canvas(2.1 * sum(heights))
    figure.set_label(CELLS)
    grid = figure.subplots(sum(heights), ACROSS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    start = 0
    for band, cells, height in zip(("support", "query"), bands, heights):
        for position, (words, colour, image) in enumerate(cells):
            _draw(grid[start + position // ACROSS, position % ACROSS], image, words, colour, band)
        start += height
    return figure


def _draw(axes: Axes, image: Tensor, words: str, colour: str, band: str) -> None:
    from matplotlib.patches import Rectangle

    draw_image(axes, image, 0, 0)
    axes.set_xlim(-0.02, 0.94)
    axes.set_ylim(1.42, -0.02)
    axes.set_label(band)
    axes.add_patch(Rectangle((0, 0), 0.92, 0.92, fill=False, linewidth=1.5, edgecolor=colour))
    axes.text(0.46, 0.97, words, va="top", ha="center", fontsize=7.5, color=INK if colour == FAINT else colour)


def _listed(words: Iterable[str]) -> str:
    """Words in up to three lines; "none" without any."""
    text = ", ".join(word.replace("_", " ") for word in words) or "none"
    return "\n".join(textwrap.wrap(text, 22, max_lines=3, placeholder="…"))
