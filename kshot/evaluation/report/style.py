"""The look that all figures share: dark ink on white, one accent colour, labels at the lines where it can be.

Colours are of Okabe and Ito's palette, darkened a little, which colour-blind readers can tell apart; and nothing is
said by colour alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.2  # inches, to be read at 800 pixels
INK, MUTED, FAINT = "#1f2933", "#66717e", "#e4e8ec"
BLUE, ORANGE, PURPLE, GREEN, RED = "#0072b2", "#d55e00", "#a3598a", "#00795a", "#c0392b"


def canvas(height: float) -> Figure:
    """An empty white figure of the width that all share, and `height` inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), dpi=110, layout="constrained", facecolor="white")


def quiet(axes: Axes, title: str, grid: Literal["x", "y", "both"] = "y") -> None:
    """Dress axes in the common look: a title at the left, faint grid lines along one axis, no box."""
    axes.set_title(title, loc="left", fontsize=10, color=INK, pad=10)
    axes.grid(axis=grid, color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, length=0, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c3cad2")
