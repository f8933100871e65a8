"""Pictures of segmentation: images with their true masks, and with those that a learner predicts.

Shape legend: n images, K classes with the background first, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kshot.evaluation.report.style import FAINT, INK, MUTED, canvas
from kshot.evaluation.report.task_pictures import draw_image
from kshot.objectives.segmentation import segmentation, upsampled
from kshot.types import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ((0.84, 0.37, 0.0), (0.0, 0.45, 0.70), (0.0, 0.62, 0.45), (0.80, 0.47, 0.65), (0.94, 0.89, 0.26))
"""Of the classes, in their order; they repeat."""
SUPPORT, QUERIES = 1, 4
"""Largest numbers of images shown of a task."""


class Segmented(NamedTuple):
    """A task, the images (n, 1 or 3, H, W) in [0, 1] of its support and query sets, and the logits for the query."""

    task: Task
    support: Tensor
    query: Tensor
    prediction: Tensor


def segmentations(tasks: Sequence[Segmented]) -> Figure:
    """A row for each task: a support image with its mask, then query images with the true and the predicted mask.

    Pixels that are not scored are dark. Below each prediction is the intersection over union of its image.
    """
    across = min(QUERIES, max(len(each.query) for each in tasks))
    figure = canvas(0.3 + 3.1 * len(tasks))
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_aspect("equal")
    small: dict[str, Any] = {"va": "top", "ha": "center", "fontsize": 7.5, "color": MUTED}
    for row, each in enumerate(tasks):
        y = 2.3 * row
        draw_image(axes, _marked(each.support[0], each.task.support.targets[0]), 0, y + 0.5)
        axes.text(0.46, y + 1.46, "support", **small)
        for number in range(min(across, len(each.query))):
            one, logits = each.task.query.rows(slice(number, number + 1)), each.prediction[number : number + 1]
            size = (one.targets.shape[-2], one.targets.shape[-1])
            chosen = torch.nn.functional.one_hot(upsampled(logits, size).argmax(1)[0], one.targets.shape[1])
            scored = one.targets[0].sum(0, keepdim=True)
            x = 1.3 + number
            draw_image(axes, _marked(each.query[number], one.targets[0]), x, y)
            draw_image(axes, _marked(each.query[number], chosen.movedim(-1, 0) * scored), x, y + 0.98)
            overlap = float(segmentation.metrics(logits, one)["mean_iou"])
            axes.text(x + 0.46, y + 1.94, f"{overlap:.2f}", **small | {"color": INK}, gid="overlap")
        side: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "center", "fontsize": 7.5, "color": MUTED}
        axes.text(1.24, y + 0.46, "true", **side)
        axes.text(1.24, y + 1.44, "predicted", **side)
        axes.axhline(y + 2.22, color=FAINT, linewidth=0.5)
    axes.set_xlim(-0.05, 1.3 + across)
    axes.set_ylim(2.3 * len(tasks), -0.05)
    return figure


def _marked(image: Tensor, mask_KHW: Tensor) -> Tensor:
    """An image (3, H, W) with its classes in colour, and darkened where no class is given."""
    image = image.detach().cpu().float().expand(3, -1, -1)
    if image.shape[-2:] != mask_KHW.shape[-2:]:
        image = upsampled(image[None], (mask_KHW.shape[-2], mask_KHW.shape[-1]))[0]
    mask_KHW = mask_KHW.detach().cpu().float()
    grey = 0.3 + 0.5 * image.mean(0, keepdim=True)
    colours = torch.tensor([COLOURS[k % len(COLOURS)] for k in range(len(mask_KHW) - 1)])
    coloured = torch.tensordot(colours.mT, mask_KHW[1:], 1)
    return image * mask_KHW[:1] + (0.45 * grey + 0.55) * coloured + 0.25 * image * (1 - mask_KHW.sum(0))
