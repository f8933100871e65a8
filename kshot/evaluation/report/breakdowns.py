"""Charts of where a learner fails: by class, and by unit, such as a patient or school."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kshot.evaluation.by_class import ByClass
from kshot.evaluation.by_label import LabelFigure
from kshot.evaluation.by_unit import UnitFigure
from kshot.evaluation.report.formatting import better
from kshot.evaluation.report.style import BLUE, INK, MUTED, canvas, ends, quiet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 20
"""More classes are listed by the pairs that were confused most."""
MOST_UNITS = 15


def confusion_chart(by_class: ByClass) -> Figure:
    """The confusion matrix of up to 20 classes: rows are true classes, columns predicted ones, cells shares.

    Example:
        >>> from kshot.evaluation.by_class import ClassFigure, Confusion
        >>> from kshot.evaluation.intervals import Interval
        >>> classes = [ClassFigure(name, Interval(0.5, 0.1, 9), 9, "") for name in ("boa", "asp")]
        >>> figure = confusion_chart(ByClass(classes, [Confusion("boa", "asp", 4, 0.5)]))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['asp', 'boa']
    """
    names, shares = by_class.matrix()
    size = len(names)
    figure = canvas(1.6 + min(0.42, 5.0 / size) * size)
    axes = figure.subplots()
    quiet(axes, "Share of the queries of a true class that was predicted as …")
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.pcolormesh(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1)
    for row in range(size):
        for column in range(size):
            share = shares[row, column]
            text = "–" if math.isnan(share) else f"{share:.2f}"[0 if share >= 0.995 else 1 :] if share >= 0.005 else ""
            colour = "white" if share > 0.6 else INK if share == share else MUTED
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=min(9, 96 / size), color=colour)
    labels = [name if len(name) <= 22 else f"{name[:21]}…" for name in names]
    axes.set_yticks(np.arange(size) + 0.5, labels)
    axes.set_xticks(np.arange(size) + 0.5, labels, rotation=45 if size > 3 else 0, ha="right" if size > 3 else "center")
    axes.invert_yaxis()
    axes.set_xlabel("predicted class", fontsize=9, color=MUTED)
    axes.set_ylabel("true class", fontsize=9, color=MUTED)
    axes.tick_params(labelcolor=INK)
    return figure


def labels_chart(labels: Sequence[LabelFigure]) -> Figure:
    """The average precision of the labels with the lowest, the worst at the top, beside what guessing would give.

    Args:
        labels: worst first, from `ByLabelMeter`.
    """
    shown = labels[:MOST_UNITS][::-1]
    figure = canvas(1.1 + 0.3 * max(len(shown), 2))
    axes = figure.subplots()
    worst = f"The {len(shown)} worst of {len(labels)}" if len(shown) < len(labels) else f"All {len(labels)}"
    quiet(axes, f"{worst}, by label: average precision (higher is better)", "x", xlabel="average precision")
    means = [each.average_precision.mean for each in shown]
    bounds = [ends(each.average_precision) for each in shown]
    bars = [(mean - max(low, 0.0), min(high, 1.0) - mean) for mean, (low, high) in zip(means, bounds)]
    axes.errorbar(
        means, range(len(shown)), xerr=np.array(bars).reshape(-1, 2).T, fmt="o", color=BLUE, markersize=5,
        elinewidth=1.6, label="learner",
    )  # fmt: skip
    shares = [each.share for each in shown]
    axes.scatter(shares, range(len(shown)), s=30, facecolors="white", edgecolors=INK, zorder=3, label="guessing")
    axes.set_yticks(range(len(shown)), [each.name if len(each.name) <= 28 else f"{each.name[:27]}…" for each in shown])
    axes.tick_params(axis="y", labelcolor=INK)
    figure.legend(frameon=False, fontsize=9, labelcolor=INK, ncols=2, loc="outside lower left")
    return figure


def units_chart(
    units: Sequence[UnitFigure], unit: str, metric: str, *, higher_is_better: bool, beside: str | None = None
) -> Figure:
    """The units with the worst figures, the worst at the top, with 95 % intervals, and a baseline's figure beside.

    Args:
        units: worst first, from `by_unit`.
        beside: name of the baseline, one of their `others`.
    """
    shown = [each for each in units if math.isfinite(each.figure.mean)][:MOST_UNITS][::-1]
    figure = canvas(1.1 + 0.3 * max(len(shown), 2))
    axes = figure.subplots()
    worst = f"The {len(shown)} worst of {len(units)}" if len(shown) < len(units) else f"All {len(units)}"
    quiet(axes, f"{worst}, by {unit}: test {metric} ({better(higher_is_better)})", "x", xlabel=metric)
    means = [each.figure.mean for each in shown]
    bounds = [ends(each.figure) for each in shown]
    known = [each.figure.mean for each in units if math.isfinite(each.figure.mean)]
    theirs = [each.others.get(beside, math.nan) if beside else math.nan for each in shown]
    span = [*means, *(value for value in theirs if math.isfinite(value)), float(np.mean(known or [0.0]))]
    reach = max(span) - min(span) or 1.0
    low, high = min(span) - reach, max(span) + reach  # an interval of two tasks may be very long
    bars = [(mean - max(a, low), min(b, high) - mean) for mean, (a, b) in zip(means, bounds)]
    axes.axvline(float(np.mean(known or [0.0])), color=MUTED, linewidth=1, linestyle=":", label="mean of all")
    axes.errorbar(
        means, range(len(shown)), xerr=np.array(bars).reshape(-1, 2).T, fmt="o", color=BLUE, markersize=5,
        elinewidth=1.6, label="learner",
    )  # fmt: skip
    if beside:
        label = beside.replace("_", " ")
        axes.scatter(theirs, range(len(shown)), s=30, facecolors="white", edgecolors=INK, zorder=3, label=label)
    names = [each.name if len(each.name) <= 28 else f"{each.name[:27]}…" for each in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.tick_params(axis="y", labelcolor=INK)
    figure.legend(frameon=False, fontsize=9, labelcolor=INK, ncols=3, loc="outside lower left")
    return figure
