"""Charts of test results, one function each: plain records in, a matplotlib `Figure` out; no pyplot, no global state.

`style.py` holds their common style, `run_charts.py` the charts of a run's training, `task_pictures.py` those of single
tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kshot.evaluation.calibration import Calibration
from kshot.evaluation.intervals import Interval, interval
from kshot.evaluation.report.formatting import Figures, better, format_figure, rank_key, read_figure
from kshot.evaluation.report.narrow import BESIDE
from kshot.evaluation.report.style import BLUE, INK, MUTED, ORANGE, PURPLE, canvas, empty, ends, log_scale, quiet
from kshot.evaluation.units import Units

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kshot.evaluation.compare import Board


class _Bar(NamedTuple):
    """A labelled interval; `outer` is the half-width of a second, thick one."""

    label: str
    figure: Interval
    colour: str = INK
    bold: bool = False
    outer: float = math.nan


def _interval_chart(title: str, bars: Sequence[_Bar], *, values: bool, nothing: str) -> Figure:
    """Horizontal intervals, the first at the bottom; with `values` each is also written at the right."""
    figure = canvas(0.95 + 0.42 * max(len(bars), 2))
    axes = figure.subplots()
    quiet(axes, title, "x")
    axes.spines["left"].set_visible(False)
    for y, bar in enumerate(bars):
        mean, (low, high) = bar.figure.mean, ends(bar.figure)
        if math.isfinite(mean):
            style: dict[str, Any] = {"color": bar.colour, "markersize": 8 if bar.bold else 6, "zorder": 3}
            width = (3 if bar.bold else 2) if values else 1.3
            axes.errorbar(
                [mean], [y], xerr=[[mean - low], [high - mean]], fmt="o", **style, elinewidth=width, capsize=0
            )
            if math.isfinite(bar.outer):
                axes.errorbar([mean], [y], xerr=[bar.outer], fmt="none", ecolor=bar.colour, elinewidth=5, alpha=0.35)
            if bar.bold:
                axes.axvspan(*ends(bar.figure), color=BLUE, alpha=0.1, linewidth=0)
        if values:
            spot: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 9}
            weight = "bold" if bar.bold else "normal"
            axes.text(1.02, y, format_figure(bar.figure), **spot, color=bar.colour, fontweight=weight, gid=BESIDE)
    if not any(values or math.isfinite(bar.figure.mean) for bar in bars):
        empty(axes, nothing)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.tick_params(axis="y", length=0, labelsize=10, labelcolor=INK)
    axes.set_ylim(-0.6, max(len(bars), 1) - 0.4)
    axes.margins(x=0.06)
    return figure


def baselines_chart(
    test: Figures | None,
    baselines: Mapping[str, Figures],
    metric: str,
    *,
    higher_is_better: bool = True,
    learner: str = "learner",
) -> Figure:
    """The test figures of the learner and the baselines as horizontal 95 % intervals, the best at the top.

    Example:
        >>> ours = {"mse": {"mean": 0.5, "ci95": 0.1, "num_tasks": 100}}
        >>> theirs = {"support mean": {"mse": {"mean": 4.0, "ci95": 0.5, "num_tasks": 100}}}
        >>> figure = baselines_chart(ours, theirs, "mse", higher_is_better=False)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['support mean', 'learner']
    """
    bars = [_Bar(learner, read_figure(test, metric), BLUE, bold=True)] if test else []
    bars += [_Bar(name.replace("_", " "), read_figure(figures, metric)) for name, figures in baselines.items()]
    bars.sort(key=lambda bar: -rank_key(bar.figure.mean, higher_is_better))
    title = f"Test {metric}, mean ± 95 % interval ({better(higher_is_better)})"
    figure = _interval_chart(title, bars, values=True, nothing="no figures")
    finite = [bar.figure for bar in bars if math.isfinite(bar.figure.mean)]
    if not higher_is_better:
        means, bounds = np.array([each.mean for each in finite]), np.array([ends(each) for each in finite])
        log_scale(figure.axes[0], "x", means, bounds.flatten())
        figure.axes[0].margins(x=0.06)
    return figure


def board_chart(board: Board) -> Figure:
    """A leaderboard as 95 % intervals, the best at the top: thin over the tasks of one seed, thick over seeds."""
    bars = []
    for line in board.lines[::-1]:
        pooled, colour = line.entry.figure, BLUE if line.behind is None else INK if line.tied else MUTED
        thin = Interval(pooled.mean, pooled.ci95_tasks, pooled.num_tasks)
        bars.append(_Bar(line.entry.name, thin, colour, outer=pooled.ci95))
    title = (
        f"{board.metric}, mean ± 95 % interval over tasks (thin) and seeds (thick); {better(board.higher_is_better)}"
    )
    return _interval_chart(title, bars, values=False, nothing="no finite figure")


def tasks_chart(
    values: Sequence[float],
    metric: str,
    *,
    learner: str = "learner",
    beside: tuple[str, Sequence[float]] | None = None,
    units: Units | None = None,
) -> Figure:
    """The distribution of a figure over tasks, and of its difference to a baseline's on the same tasks.

    Args:
        values: the learner's figure of each task.
        beside: name and figures of another learner, such as the best baseline, on the first of the same tasks.
        units: of the tasks, as in `interval`.
    """
    figure = canvas(2.9)
    ours = np.asarray(values, float)
    theirs = np.asarray([] if beside is None else beside[1], float)
    panels = figure.subplots(1, 1 if beside is None else 2, squeeze=False)[0]
    finite = np.concatenate([ours, theirs])
    finite = finite[np.isfinite(finite)]
    spread, gap = panels[0], panels[-1]
    quiet(spread, f"Test {metric} of single tasks", xlabel=metric, ylabel="share of tasks")
    if not len(finite):
        empty(spread, "no finite figure")
        return figure
    wide = metric != "accuracy" and finite.min() > 0 and finite.max() / finite.min() >= 20
    edges = np.geomspace(finite.min(), finite.max(), 25) if wide else _edges(finite)
    if beside is not None:
        name = beside[0].replace("_", " ")
        _histogram(spread, theirs, edges, histtype="step", color=MUTED, linewidth=1.5, label=name)
    _histogram(spread, ours, edges, color=BLUE, alpha=0.75, label=learner)
    if wide:
        log_scale(spread, "x", finite)
    if beside is not None:
        spread.legend(frameon=False, fontsize=9, labelcolor=INK)
        differences = ours[: len(theirs)] - theirs
        mean = interval(list(differences), units and units.first(len(differences)))
        title = f"{learner} − {name}".replace("_", " ")
        size = f": {format_figure(mean)}" if math.isfinite(mean.mean) else ""
        title += f"\n{size[2:]}" if len(title + size) > 40 and size else size
        quiet(gap, title, xlabel=f"difference on the same {len(theirs)} tasks")
        gap.axvline(0, color=INK, linewidth=1)
        _histogram(gap, differences, _edges(differences[np.isfinite(differences)]), color=PURPLE, alpha=0.6)
        if math.isfinite(mean.mean):
            gap.axvspan(*ends(mean), color=INK, alpha=0.18, linewidth=0)
            gap.axvline(mean.mean, color=INK, linewidth=1.3, linestyle="--")
    return figure


def shots_chart(points: Sequence[tuple[int, Interval]], metric: str, *, higher_is_better: bool = True) -> Figure:
    """A learner's figure over the number of support examples, with 95 % intervals.

    Example:
        >>> figure = shots_chart([(1, Interval(0.8, 0.02, 100)), (5, Interval(0.93, 0.01, 100))], "accuracy")
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['1', '5']
    """
    figure = canvas(2.9)
    axes = figure.subplots()
    title = f"Test {metric} by number of shots ({better(higher_is_better)})"
    quiet(axes, title, xlabel="support examples (per class if tasks have classes of their own)")
    shots = [count for count, _ in points]
    means = np.array([each.mean for _, each in points])
    low, high = np.array([ends(each) for _, each in points]).T
    axes.plot(shots, means, color=BLUE, alpha=0.35, linewidth=1.2)
    axes.errorbar(shots, means, (means - low, high - means), fmt="o", color=BLUE, markersize=5, elinewidth=1.6)
    for count, each in points:
        if math.isfinite(each.mean):
            offset: dict[str, Any] = {"xytext": (6, 6), "textcoords": "offset points"}
            axes.annotate(format_figure(each).split()[0], (count, each.mean), **offset, fontsize=9, color=BLUE)
    axes.set_xscale("log")
    axes.set_xticks(shots, [str(count) for count in shots])
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.16)
    if not higher_is_better and np.isfinite(means).all():
        log_scale(axes, "y", means, np.concatenate([low, high]))
    return figure


def reliability_chart(calibration: Calibration) -> Figure:
    """A reliability diagram: accuracy at each probability, or coverage of each central band.

    The area of a point is its share of the examples; vertical lines are gaps to the diagonal.
    """
    classes = calibration.kind == "classes"
    figure = canvas(3.6)
    axes = figure.subplots()
    title = "Reliability: calibration error" if classes else "Coverage of central bands: mean gap"
    title += f" {calibration.error:.3f}, {calibration.num_examples:,} queries"
    labels = ("probability of the predicted class", "accuracy") if classes else ("band", "targets within")
    quiet(axes, title, "both", xlabel=labels[0], ylabel=labels[1])
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle="--", zorder=1)
    expected, observed, share = np.array(calibration.points).reshape(-1, 3).T
    low, high = np.minimum(expected, observed), np.maximum(expected, observed)
    axes.vlines(expected, low, high, color=ORANGE, linewidth=2, zorder=2)
    sizes = 14 + 420 * share if classes else 36
    axes.scatter(expected, observed, s=sizes, color=BLUE, zorder=3, edgecolor="white", linewidth=0.8)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.04, 1.04)
    axes.set_aspect("equal")
    return figure


def _edges(values: np.ndarray) -> np.ndarray:
    """24 equal bins over finite values, with some width if all are equal."""
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    return np.linspace(low, high, 25) if high > low else np.linspace(low - 0.5, high + 0.5, 25)


def _histogram(axes: Axes, values: np.ndarray, edges: np.ndarray, **style: Any) -> None:
    """Shares of all values in each bin, without those that are not finite."""
    finite = values[np.isfinite(values)]
    axes.hist(finite, list(edges), weights=np.full(len(finite), 1 / max(len(values), 1)), **style)
