"""Figures for narrow screens, such as phones: of half the width, with text of the same size."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from kshot.evaluation.report.cells import CELLS, arrange
from kshot.evaluation.report.style import WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NARROW = 3.7  # inches, for a display width of 340 to 390 pixels
TITLE, NAMED, LABEL = 42, 30, 18
"""Characters of a line of a title, of one above an axis with names, and of such a name."""
BESIDE = "beside"
"""`gid` of a text to the right of an axis that belongs to the tick label of the same height."""
COLUMNS = 3
"""Small pictures in a row."""


def make_narrow(figure: Figure) -> Figure:
    """Change a figure in place: axes that are side by side are put below each other, and long texts are wrapped."""
    if figure.get_label() == CELLS:
        arrange(figure, COLUMNS, NARROW)
        return figure
    grids: dict[Axes, Any] = {axes: spec.get_gridspec() for axes in figure.axes if (spec := axes.get_subplotspec())}
    panels, columns = list(grids), max((grid.ncols for grid in grids.values()), default=1)
    height = float(figure.get_size_inches()[1])
    if columns > 1:
        height = _stack(figure, panels, columns, height / grids[panels[0]].nrows)
    for axes in (axes for axes in panels if axes in figure.axes):
        _wrap(axes)
    for legend in list(figure.legends):
        handles: Any = legend.legend_handles
        texts = [text.get_text() for text in legend.get_texts()]
        legend.remove()
        figure.legend(handles, texts, frameon=False, fontsize=9, ncols=1, loc="outside lower left")
        height += 0.2 * (len(texts) - 1)
    figure.set_size_inches(NARROW, height)
    return figure


def _stack(figure: Figure, panels: list[Axes], columns: int, height: float) -> float:
    """Put the panels, of a height each, below each other, and return the height of the figure."""
    from matplotlib.gridspec import GridSpec

    used = [axes for axes in panels if axes.has_data() or axes.axison]
    for axes in panels:
        if axes not in used:
            axes.remove()
    grid = GridSpec(len(used), 1, figure=figure)
    for position, axes in enumerate(used):
        axes.set_subplotspec(grid[position])
        axes.tick_params(labelleft=axes.axison, labelbottom=axes.axison)
    wider = max(NARROW / (WIDTH / columns), 0.9) if used[0].images else 1.0
    return height * len(used) * wider


def _wrap(axes: Axes) -> None:
    """Wrap the title and the labels of an axis, and move texts beside it into its tick labels."""
    labels = [label.get_text() for label in axes.get_yticklabels()]
    named = any(character.isalpha() for label in labels for character in label)
    title, most = axes.get_title(loc="left"), NAMED if named else TITLE
    wrapped = "\n".join("\n".join(textwrap.wrap(line, most)) for line in title.splitlines())
    axes.set_title(wrapped, loc="left", fontsize=10)
    axes.set_xlabel("\n".join(textwrap.wrap(axes.get_xlabel(), TITLE)))
    if not named:
        return
    beside = {text.get_position()[1]: text for text in axes.texts if text.get_gid() == BESIDE}
    ticks, new = axes.get_yticks(), []
    for tick, label in zip(ticks, labels):
        lines = textwrap.wrap(label, LABEL)
        if tick in beside:
            lines.append(beside[tick].get_text())
            beside[tick].remove()
        new.append("\n".join(lines))
    axes.set_yticks(ticks, new)
    axes.tick_params(axis="y", labelsize=9)
