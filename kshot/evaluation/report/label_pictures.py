"""Pictures of images with several labels: true ones, and those that a learner predicts.

Shape legend: n images, C labels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kshot.evaluation.report.cells import Cell, draw_cells
from kshot.evaluation.report.style import FAINT, GREEN, INK, RED
from kshot.types import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 10
"""The largest number of support and of query images shown."""


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
        Cell(
            support.inputs[row],
            _listed(name for name, has in zip(names, support.targets[row].tolist()) if has),
            FAINT,
            INK,
        )
        for row in (support.weight > 0).nonzero()[:MOST, 0].tolist()
    ]
    answers = []
    for row in rows[:MOST]:
        marks = {(True, True): "{}", (True, False): "[{}]", (False, True): "✗ {}"}
        pairs = zip(names, zip(true[row].tolist(), predicted[row].tolist()))
        words = _listed(marks[pair].format(name) for name, pair in pairs if pair in marks)
        colour = RED if wrong[row] else GREEN
        answers.append(Cell(query.inputs[row], words, colour, colour))
    return draw_cells({"support": known, "query": answers})


def _listed(words: Iterable[str]) -> str:
    """Words in up to three lines; "none" without any."""
    text = ", ".join(word.replace("_", " ") for word in words) or "none"
    return "\n".join(textwrap.wrap(text, 22, max_lines=3, placeholder="…"))
