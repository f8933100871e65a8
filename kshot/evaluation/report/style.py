"""The style of all figures: dark ink on white, one accent colour, direct labels where possible.

Colours are from Okabe and Ito's palette, slightly darkened, which colour-blind readers can distinguish; no information
is conveyed by colour alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from kshot.evaluation.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.2  # inches, for a display width of 800 pixels
INK, MUTED, FAINT = "#1f2933", "#66717e", "#e4e8ec"
BLUE, ORANGE, PURPLE, GREEN, RED = "#0072b2", "#d55e00", "#a3598a", "#00795a", "#c0392b"
MARKS = {"continue": ("o", MUTED), "change": ("D", ORANGE), "rollback": ("<", PURPLE), "stop": ("s", INK)}
"""Marker and colour of each decision."""


def canvas(height: float) -> Figure:
    """An empty white figure of the common width and a height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), dpi=110, layout="constrained", facecolor="white")


def quiet(axes: Axes, title: str, grid: Literal["x", "y", "both"] = "y", *, xlabel: str = "", ylabel: str = "") -> None:
    """Apply the common style to axes: title at the left, faint grid lines along one axis, no box."""
    axes.set_title(title, loc="left", fontsize=10, color=INK, pad=10)
    if xlabel:
        axes.set_xlabel(xlabel, fontsize=9, color=MUTED)
    if ylabel:
        axes.set_ylabel(ylabel, fontsize=9, color=MUTED)
    axes.grid(axis=grid, color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, length=0, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c3cad2")


def empty(axes: Axes, sentence: str) -> None:
    """Write a sentence in place of data."""
    axes.text(0.5, 0.5, sentence, transform=axes.transAxes, ha="center", va="center", fontsize=10, color=MUTED)
    axes.tick_params(labelleft=False, labelbottom=False)


def ends(figure: Interval) -> tuple[float, float]:
    """Both ends of an interval, or its mean twice if it has no width."""
    return (figure.low, figure.high) if math.isfinite(figure.ci95) else (figure.mean, figure.mean)


def log_scale(axes: Axes, axis: Literal["x", "y"], values: np.ndarray, bounds: np.ndarray | None = None) -> None:
    """Make an axis logarithmic if its values are positive and span more than a factor of 20.

    Args:
        axes: axes.
        axis: "x" or "y".
        values: values shown on the axis.
        bounds: ends of their intervals; one that reaches 0 has no end on a logarithmic axis.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if len(values) == 0 or values.min() <= 0 or values.max() / values.min() < 20:
        return
    (axes.set_yscale if axis == "y" else axes.set_xscale)("log", nonpositive="clip")
    ruler = axes.yaxis if axis == "y" else axes.xaxis
    few = values.max() / values.min() < 1e3
    ruler.set_major_locator(LogLocator(subs=(1.0, 3.0) if few else (1.0,)))
    ruler.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ruler.set_minor_formatter(NullFormatter())
    if bounds is not None and (below := bounds <= 0).any():
        low = min(values.min(), bounds[~below].min()) / 2
        (axes.set_ylim if axis == "y" else axes.set_xlim)(low, 1.5 * bounds.max())
