"""Figures for narrow screens, such as phones: of half the width, with text of the same size."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from kshot.evaluation.report.style import WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

NARROW = 3.7  # inches, for a display width of 340 to 390 pixels
TITLE, NAMED, LABEL = 42, 30, 18
"""Characters of a line of a title, of one above an axis with names, and of such a name."""
BESIDE = "beside"
"""`gid` of a text to the right of an axis that belongs to the tick label of the same height."""
KEEP = "keep"
"""`label` of a figure whose axes stay in their columns."""


def make_narrow(figure: Figure) -> Figure:
    """Change a figure in place: axes that are side by side are put below each other, and long texts are wrapped."""
    panels = [axes for axes in figure.axes if axes.get_subplotspec() is not None]
    columns = max((axes.get_subplotspec().get_gridspec().ncols for axes in panels), default=1)
    width, height = figure.get_size_inches()
    if columns > 1 and figure.get_label() != KEEP:
        height = _stack(figure, panels, columns, height)
    elif figure.get_label() == KEEP:
        height *= NARROW / width * 1.3
    for axes in panels:
        _wrap(axes)
    for legend in list(figure.legends):
        handles, texts = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
        legend.remove()
        figure.legend(handles, texts, frameon=False, fontsize=9, ncols=1, loc="outside lower left")
        height += 0.2 * (len(texts) - 1)
    figure.set_size_inches(NARROW, height)
    return figure


def _stack(figure: Figure, panels: list[Axes], columns: int, height: float) -> float:
    """Put the panels below each other, and return the height of the figure."""
    from matplotlib.gridspec import GridSpec

    rows = panels[0].get_subplotspec().get_gridspec().nrows
    used = [axes for axes in panels if axes.has_data() or axes.axison]
    for axes in panels:
        if axes not in used:
            axes.remove()
    grid = GridSpec(len(used), 1, figure=figure)
    for position, axes in enumerate(used):
        axes.set_subplotspec(grid[position])
        axes.tick_params(labelleft=axes.axison, labelbottom=axes.axison)
    return (
        height / rows * len(used) * max(NARROW / (WIDTH / columns), 0.9)
        if used[0].images
        else height / rows * len(used)
    )


def _wrap(axes: Axes) -> None:
    """Wrap the title and the labels of an axis, and move texts beside it into its tick labels."""
    labels = [label.get_text() for label in axes.get_yticklabels()]
    named = any(character.isalpha() for label in labels for character in label)
    title, most = axes.get_title(loc="left"), NAMED if named else TITLE
    wrapped = "\n".join("\n".join(textwrap.wrap(line, most)) for line in title.splitlines())
    axes.set_title(wrapped, loc="left", fontsize=10)
    axes.set_xlabel("\n".join(textwrap.wrap(axes.get_xlabel(), TITLE)))
    beside: dict[float, Text] = {text.get_position()[1]: text for text in axes.texts if text.get_gid() == BESIDE}
    if not named:
        return
    ticks, new = axes.get_yticks(), []
    for tick, label in zip(ticks, labels):
        lines = textwrap.wrap(label, LABEL)
        if tick in beside:
            lines.append(beside[tick].get_text())
            beside[tick].remove()
        new.append("\n".join(lines))
    axes.set_yticks(ticks, new)
    axes.tick_params(axis="y", labelsize=9)
