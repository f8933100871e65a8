"""Small pictures in rows, each with a frame and a text below it: one axes for all of them, which is drawn fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from kshot.evaluation.report.style import WIDTH, canvas
from kshot.evaluation.report.task_pictures import draw_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELLS = "cells"
"""`label` of a figure of small pictures."""
ACROSS = 5
"""Small pictures in a row."""
SIDE, PITCH, DOWN = 0.92, 1.0, 1.46
"""Side of an image, and the distances of columns and of rows, which leave space for three lines of text."""


class Cell(NamedTuple):
    """An image (1 or 3, H, W) with the text below it, and the colours of its frame and of the text."""

    image: Tensor
    text: str
    frame: str
    ink: str


def draw_cells(bands: Mapping[str, Sequence[Cell]]) -> Figure:
    """Bands of small pictures below each other, each from a new row on.

    Example:
        >>> import torch
        >>> figure = draw_cells({"support": [Cell(torch.zeros(1, 8, 8), name, "black", "black") for name in "abcdef"]})
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['a', 'b', 'c', 'd', 'e', 'f']
    """
    from matplotlib.patches import Rectangle

    figure = canvas(1)
    figure.set_layout_engine("none")  # the axes fill it
    figure.set_label(CELLS)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for band, cells in bands.items():
        for cell in cells:
            draw_image(axes, cell.image, 0, 0)
            frame = Rectangle((0, 0), SIDE, SIDE, fill=False, linewidth=1.5, edgecolor=cell.frame, gid=band)
            axes.add_patch(frame)
            axes.text(0, 0, cell.text, va="top", ha="center", fontsize=7.5, color=cell.ink, gid=band)
    arrange(figure, ACROSS, WIDTH)
    return figure


def arrange(figure: Figure, columns: int, width: float) -> None:
    """Put the pictures of `draw_cells` in so many columns, and set the size of the figure to a width in inches."""
    (axes,) = figure.axes
    row, column, before = -1, 0, ""
    for image, frame, text in zip(axes.images, axes.patches, axes.texts):
        band = str(frame.get_gid())
        row, column = (row, column + 1) if band == before and column + 1 < columns else (row + 1, 0)
        x, y, before = column * PITCH, row * DOWN, band
        box: Any = frame
        box.set_xy((x, y))
        image.set_extent((x, x + SIDE, y + SIDE, y))
        text.set_position((x + SIDE / 2, y + SIDE + 0.05))
    axes.set_xlim(SIDE - PITCH, columns * PITCH)
    axes.set_ylim((row + 1) * DOWN, SIDE - PITCH)
    across = columns * PITCH + PITCH - SIDE
    figure.set_size_inches(width, width * (max(row + 1, 1) * DOWN + PITCH - SIDE) / across)
