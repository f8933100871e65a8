"""Charts of a run, one function each: plain records in, a matplotlib `Figure` out. No pyplot, no global state.

`look.py` holds what they share, `examples.py` the pictures of single tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kshot.evaluation.calibration import Calibration
from kshot.evaluation.intervals import Interval, interval
from kshot.evaluation.report.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, RED, canvas, quiet
from kshot.evaluation.report.task_pictures import (
    Completion,
    Example,
    classification_examples,
    completions,
    predictive_bands,
    regression_examples,
)
from kshot.evaluation.report.verdict import Figures, read, written
from kshot.evaluation.target import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kshot.evaluation.compare import Board

__all__ = [
    "Completion",
    "Example",
    "baselines_chart",
    "board_chart",
    "classification_examples",
    "completions",
    "learning_curve",
    "predictive_bands",
    "regression_examples",
    "reliability_chart",
    "rounds_chart",
    "shots_chart",
    "tasks_chart",
]

MARKS = {"continue": ("o", MUTED), "change": ("D", ORANGE), "rollback": ("<", PURPLE), "stop": ("s", INK)}
"""Marker and colour of each decision."""


def learning_curve(events: Sequence[Mapping[str, Any]]) -> Figure:
    """The loss over the steps, of pretraining and of meta-training side by side where there are both.

    Args:
        events: of a run's experience; those of kind "train" and "pretrain" with `step` and `loss` are drawn. A later
            event replaces an earlier one of the same step, as a resumed run writes it.

    Example:
        >>> figure = learning_curve([{"kind": "train", "step": 10 * i, "loss": 1 / i} for i in range(1, 50)])
        >>> len(figure.axes)
        1
    """
    titles = {"pretrain": "Pretraining loss", "train": "Meta-training loss"}
    curves = {kind: _losses(events, kind) for kind in titles}
    shown = [kind for kind, curve in curves.items() if curve] or ["train"]
    figure = canvas(2.9)
    ratios = [2 if kind == "train" else 1 for kind in shown]
    for axes, kind in zip(figure.subplots(1, len(shown), squeeze=False, width_ratios=ratios)[0], shown):
        quiet(axes, titles[kind])
        axes.set_xlabel("step", fontsize=9, color=MUTED)
        steps, losses = np.array(sorted(curves[kind].items())).reshape(-1, 2).T
        finite = np.isfinite(losses)
        for step in steps[~finite]:
            axes.axvline(step, color=RED, linewidth=1)
            axes.text(step, 1, " not finite", color=RED, fontsize=8, va="top", transform=axes.get_xaxis_transform())
        steps, losses = steps[finite], losses[finite]
        if not len(losses):
            _nothing(axes, "no finite loss was recorded")
            continue
        axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=1, gid="recorded")
        dot = "o" if len(losses) == 1 else None
        axes.plot(steps, _smooth(losses), color=BLUE, linewidth=2, marker=dot, gid="smooth")
        _scale(axes, "y", losses)
    return figure


def rounds_chart(
    rounds: Sequence[Mapping[str, Any]], target: str, *, baseline: tuple[str, Interval] | None = None
) -> Figure:
    """The validation figure of each round against the target, and the decision taken after it.

    Args:
        rounds: dicts with `number`, `val` {metric: {mean, ci95, num_tasks}}, `diverged`, and perhaps `decision`
            {action, settings, to_round, outcome}.
        target: such as "accuracy >= 0.9".
        baseline: name and figure of the best baseline, for a dashed line; see `best_baseline`.

    Raises:
        ValueError: a target that reads otherwise.

    Example:
        >>> val = {"accuracy": {"mean": 0.8, "ci95": 0.02, "num_tasks": 100}}
        >>> stop = {"action": "stop", "reason": "…", "outcome": "TARGET_MET"}
        >>> figure = rounds_chart([{"number": 1, "val": val, "decision": stop}], "accuracy >= 0.7")
        >>> len(figure.axes)
        2
    """
    metric, at_least, value = astuple(Target.parse(target))
    figure = canvas(4.3)
    axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
    found = {int(r["number"]): read(r.get("val"), metric) for r in rounds}
    good = {number: each for number, each in found.items() if math.isfinite(each.mean)}
    tasks = max((each.num_tasks for each in good.values()), default=0)
    quiet(axes, f"Validation {metric} after each round" + (f", mean ± 95 % interval over {tasks} tasks" * bool(tasks)))
    axes.tick_params(bottom=False, labelbottom=False)

    bounds = [end for each in good.values() for end in _ends(each)]
    levels = [Level(value, f"target {'≥' if at_least else '≤'} {value:g}", GREEN, "-")]
    if baseline is not None and math.isfinite(baseline[1].mean):
        levels.append(_baseline_level(*baseline, [*bounds, value]))
    for level in levels:
        if level.dash:
            axes.axhline(level.value, color=level.colour, linewidth=1.3, linestyle=level.dash, zorder=1)
    if good:
        numbers, (means, halves, _) = list(good), zip(*good.values())
        axes.plot(numbers, means, color=BLUE, alpha=0.35, linewidth=1.2, zorder=2)
        axes.errorbar(numbers, means, halves, fmt="o", color=BLUE, markersize=5, elinewidth=1.6, capsize=0, zorder=3)
        best = (max if at_least else min)(good, key=lambda number: good[number].mean)
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": BLUE, "linewidths": 1.4}
        axes.scatter([best], [good[best].mean], s=110, **ring, zorder=4, gid="best")
        label = f"best: {written(good[best])}"
        side = "right" if best > (min(found) + max(found)) / 2 else "left"
        up = 1 if at_least else -1
        edge = _ends(good[best])[1 if at_least else 0]
        place: dict[str, Any] = {
            "xytext": (0, 9 * up),
            "textcoords": "offset points",
            "va": "bottom" if up > 0 else "top",
        }
        axes.annotate(label, (best, edge), **place, ha=side, fontsize=9, color=BLUE, fontweight="bold")
        if not at_least:
            drawn = [level.value for level in levels if level.dash]
            _scale(axes, "y", np.array([*means, *drawn]), np.array(bounds))
        axes.margins(y=0.14)
    else:
        _nothing(axes, "no round was evaluated")
    _label_levels(axes, levels)
    for number in found.keys() - good.keys():
        axes.axvspan(number - 0.4, number + 0.4, color=RED, alpha=0.08, linewidth=0)
        spot: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "rotation": 90, "ha": "center", "va": "bottom"}
        axes.text(number, 0.03, "diverged", **spot, color=RED, fontsize=9)
    _decisions(strip, rounds)
    first, last = min(found, default=1), max(found, default=1)
    strip.set_xlim(first - 0.6, last + 0.6)
    return figure


def baselines_chart(
    test: Figures | None,
    baselines: Mapping[str, Figures],
    metric: str,
    *,
    higher_is_better: bool = True,
    learner: str = "learner",
) -> Figure:
    """The learner's test figure among those of the baselines, as horizontal 95 % intervals, the best at the top.

    Args:
        test: the learner's figures, metric -> {mean, ci95, num_tasks}.
        baselines: name -> figures of each baseline.
        metric: the one to draw.
        higher_is_better: True for an accuracy, False for an error.
        learner: what to call the learner.

    Example:
        >>> ours = {"mse": {"mean": 0.5, "ci95": 0.1, "num_tasks": 100}}
        >>> theirs = {"support mean": {"mse": {"mean": 4.0, "ci95": 0.5, "num_tasks": 100}}}
        >>> figure = baselines_chart(ours, theirs, "mse", higher_is_better=False)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['support mean', 'learner']
    """
    rows = [(learner, read(test, metric), True)] if test else []
    rows += [(name.replace("_", " "), read(figures, metric), False) for name, figures in baselines.items()]
    worst = -math.inf if higher_is_better else math.inf
    rows.sort(key=lambda row: row[1].mean if math.isfinite(row[1].mean) else worst, reverse=not higher_is_better)
    figure = canvas(0.95 + 0.42 * max(len(rows), 2))
    axes = figure.subplots()
    quiet(axes, f"Test {metric}, mean ± 95 % interval ({'higher' if higher_is_better else 'lower'} is better)", "x")
    axes.spines["left"].set_visible(False)
    for y, (_, found, ours) in enumerate(rows):
        colour, weight = (BLUE, "bold") if ours else (INK, "normal")
        half = found.ci95 if math.isfinite(found.ci95) else 0.0
        if math.isfinite(found.mean):
            style: dict[str, Any] = {"markersize": 8 if ours else 6, "elinewidth": 3 if ours else 2, "capsize": 0}
            axes.errorbar([found.mean], [y], xerr=[half], fmt="o", color=colour, **style, zorder=3)
            if ours:
                axes.axvspan(*_ends(found), color=BLUE, alpha=0.1, linewidth=0)
        spot: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 9}
        axes.text(1.02, y, written(found), **spot, color=colour, fontweight=weight)
    if not rows:
        _nothing(axes, "no figures")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.tick_params(axis="y", length=0, labelsize=10, labelcolor=INK)
    axes.set_ylim(-0.6, max(len(rows), 1) - 0.4)
    finite = [found for _, found, _ in rows if math.isfinite(found.mean)]
    if not higher_is_better:
        bounds = np.array([end for found in finite for end in _ends(found)])
        _scale(axes, "x", np.array([found.mean for found in finite]), bounds)
    axes.margins(x=0.06)
    return figure


def tasks_chart(
    values: Sequence[float],
    metric: str,
    *,
    learner: str = "learner",
    beside: tuple[str, Sequence[float]] | None = None,
    subjects: np.ndarray | None = None,
) -> Figure:
    """How a figure is spread over tasks, and task by task how far it is from that of another on the same tasks.

    Args:
        values: the learner's figure of each task.
        metric: what it is.
        learner: what to call the learner.
        beside: name and figures of another learner, such as the best baseline, on the first of the same tasks.
        subjects: whose each task is, as in `interval`.

    Example:
        >>> figure = tasks_chart([0.8, 1.0, 0.9], "accuracy", beside=("centroid", [0.5, 0.9, 0.4]))
        >>> len(figure.axes)
        2
    """
    figure = canvas(2.9)
    ours = np.asarray(values, float)
    theirs = np.asarray([] if beside is None else beside[1], float)
    panels = figure.subplots(1, 1 if beside is None else 2, squeeze=False)[0]
    both = np.concatenate([ours, theirs])
    both = both[np.isfinite(both)]
    spread, gap = panels[0], panels[-1]
    quiet(spread, f"Test {metric} of single tasks")
    spread.set_xlabel(metric, fontsize=9, color=MUTED)
    spread.set_ylabel("share of tasks", fontsize=9, color=MUTED)
    if not len(both):
        _nothing(spread, "no finite figure")
        return figure
    wide = metric != "accuracy" and both.min() > 0 and both.max() / both.min() >= 20
    edges = np.geomspace(both.min(), both.max(), 25) if wide else _edges(both)
    if beside is not None:
        name = beside[0].replace("_", " ")
        _histogram(spread, theirs, edges, histtype="step", color=MUTED, linewidth=1.5, label=name)
    _histogram(spread, ours, edges, color=BLUE, alpha=0.75, label=learner)
    if wide:
        _scale(spread, "x", both)
    if beside is not None:
        spread.legend(frameon=False, fontsize=9, labelcolor=INK)
        differ = ours[: len(theirs)] - theirs
        found = interval(list(differ), None if subjects is None else subjects[: len(differ)])
        said = f": {written(found)}" if math.isfinite(found.mean) else ""
        quiet(gap, f"{learner} less {name}{said}")
        gap.set_xlabel(f"difference of {metric} on the same {len(theirs)} tasks", fontsize=9, color=MUTED)
        gap.axvline(0, color=INK, linewidth=1)
        _histogram(gap, differ, _edges(differ[np.isfinite(differ)]), color=PURPLE, alpha=0.6)
        if math.isfinite(found.mean):
            gap.axvspan(*_ends(found), color=INK, alpha=0.18, linewidth=0)
            gap.axvline(found.mean, color=INK, linewidth=1.3, linestyle="--")
    return figure


def board_chart(board: Board) -> Figure:
    """A leaderboard as 95 % intervals, the best at the top: thin over the tasks of one seed, thick over seeds.

    Example:
        >>> from kshot.evaluation.compare import Board, Entry, Line
        >>> from kshot.evaluation.intervals import OverSeeds
        >>> found = OverSeeds(0.9, 0.02, 3, 0.01, 600)
        >>> entry = Entry("a", "maml", "glyphs", "accuracy", True, found, True, "ab" * 32, [], {}, "runs/a")
        >>> figure = board_chart(Board("accuracy", True, "glyphs", "ab" * 32, 600, [Line(entry, None, math.nan)]))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['a']
    """
    lines = board.lines[::-1]
    figure = canvas(0.95 + 0.42 * max(len(lines), 2))
    axes = figure.subplots()
    better = "higher" if board.higher_is_better else "lower"
    quiet(axes, f"{board.metric}, mean ± 95 % interval over tasks (thin) and seeds (thick); {better} is better", "x")
    axes.spines["left"].set_visible(False)
    for y, line in enumerate(lines):
        found = line.entry.figure
        colour = BLUE if line.behind is None else INK if line.tied else MUTED
        if math.isfinite(found.mean):
            half = found.ci95_tasks if math.isfinite(found.ci95_tasks) else 0.0
            axes.errorbar([found.mean], [y], xerr=[half], fmt="o", color=colour, markersize=6, elinewidth=1.3, zorder=3)
            if math.isfinite(found.ci95):
                axes.errorbar([found.mean], [y], xerr=[found.ci95], fmt="none", ecolor=colour, elinewidth=5, alpha=0.35)
    if not any(math.isfinite(line.entry.figure.mean) for line in lines):
        _nothing(axes, "no finite figure")
    axes.set_yticks(range(len(lines)), [line.entry.name for line in lines])
    axes.tick_params(axis="y", length=0, labelsize=10, labelcolor=INK)
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.margins(x=0.06)
    return figure


def shots_chart(points: Sequence[tuple[int, Interval]], metric: str, *, higher_is_better: bool = True) -> Figure:
    """A learner's figure over the number of support examples, with 95 % intervals.

    Args:
        points: number of shots, and the figure there.
        metric: what it is.
        higher_is_better: True for an accuracy, False for an error.

    Example:
        >>> figure = shots_chart([(1, Interval(0.8, 0.02, 100)), (5, Interval(0.93, 0.01, 100))], "accuracy")
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['1', '5']
    """
    figure = canvas(2.9)
    axes = figure.subplots()
    quiet(axes, f"Test {metric} over shots ({'higher' if higher_is_better else 'lower'} is better)")
    shots = [count for count, _ in points]
    means = np.array([found.mean for _, found in points])
    halves = np.array([found.ci95 if math.isfinite(found.ci95) else 0.0 for _, found in points])
    axes.plot(shots, means, color=BLUE, alpha=0.35, linewidth=1.2)
    axes.errorbar(shots, means, halves, fmt="o", color=BLUE, markersize=5, elinewidth=1.6)
    for count, found in points:
        if math.isfinite(found.mean):
            place: dict[str, Any] = {"xytext": (6, 6), "textcoords": "offset points"}
            axes.annotate(written(found).split()[0], (count, found.mean), **place, fontsize=9, color=BLUE)
    axes.set_xscale("log")
    axes.set_xticks(shots, [str(count) for count in shots])
    axes.minorticks_off()
    axes.set_xlabel("support examples (of each class, where tasks have their own)", fontsize=9, color=MUTED)
    axes.margins(x=0.08, y=0.16)
    if not higher_is_better and np.isfinite(means).all():
        _scale(axes, "y", means, np.concatenate([means - halves, means + halves]))
    return figure


def reliability_chart(calibration: Calibration) -> Figure:
    """What was expected against what came: accuracy at each probability, or coverage of each band.

    A point's area is its share of the examples; the vertical line is how far it is from the diagonal.

    Example:
        >>> from kshot.evaluation.calibration import Point
        >>> points = [Point(0.55, 0.6, 0.2), Point(0.95, 0.9, 0.8)]
        >>> nothing = Interval(0.0, 0.0, 1)
        >>> figure = reliability_chart(Calibration("classes", 0.05, points, 100, nothing, nothing))
        >>> figure.axes[0].get_xlabel()
        'probability of the class that was chosen'
    """
    classes = calibration.kind == "classes"
    figure = canvas(3.6)
    axes = figure.subplots()
    title = "Reliability: calibration error" if classes else "Coverage of central bands: mean gap"
    quiet(axes, f"{title} {calibration.error:.3f}, {calibration.num_examples:,} queries", "both")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle="--", zorder=1)
    expected, observed, share = np.array(calibration.points).reshape(-1, 3).T
    low, high = np.minimum(expected, observed), np.maximum(expected, observed)
    axes.vlines(expected, low, high, color=ORANGE, linewidth=2, zorder=2)
    sizes = 14 + 420 * share if classes else 36
    axes.scatter(expected, observed, s=sizes, color=BLUE, zorder=3, edgecolor="white", linewidth=0.8)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.04, 1.04)
    axes.set_aspect("equal")
    labels = ("probability of the class that was chosen", "accuracy") if classes else ("band", "targets within")
    axes.set_xlabel(labels[0], fontsize=9, color=MUTED)
    axes.set_ylabel(labels[1], fontsize=9, color=MUTED)
    return figure


def _edges(values: np.ndarray) -> np.ndarray:
    """24 equal bins over finite values; a little width where all are the same."""
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    return np.linspace(low, high, 25) if high > low else np.linspace(low - 0.5, high + 0.5, 25)


def _histogram(axes: Axes, values: np.ndarray, edges: np.ndarray, **style: Any) -> None:
    """Shares of all values; those that are not finite stand nowhere."""
    finite = values[np.isfinite(values)]
    axes.hist(finite, list(edges), weights=np.full(len(finite), 1 / max(len(values), 1)), **style)


def _losses(events: Sequence[Mapping[str, Any]], kind: str) -> dict[float, float]:
    chosen = [event for event in events if event.get("kind") == kind and event.get("step") is not None]
    return {event["step"]: math.nan if event.get("loss") is None else float(event["loss"]) for event in chosen}


def _smooth(values: np.ndarray) -> np.ndarray:
    """A moving mean over about a fifteenth of the points; towards the ends the window shrinks, and stays centred."""
    at = np.arange(len(values))
    half = np.minimum(len(values) // 30, np.minimum(at, at[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[at + half + 1] - sums[at - half]) / (2 * half + 1)


def _scale(axes: Axes, axis: str, values: np.ndarray, bounds: np.ndarray | None = None) -> None:
    """Make an axis logarithmic if its values, all positive, span more than a factor of 20, and label it plainly."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if len(values) == 0 or values.min() <= 0 or values.max() / values.min() < 20:
        return
    (axes.set_yscale if axis == "y" else axes.set_xscale)("log", nonpositive="clip")
    ruler = axes.yaxis if axis == "y" else axes.xaxis
    few = values.max() / values.min() < 1e3
    ruler.set_major_locator(LogLocator(subs=(1.0, 3.0) if few else (1.0,)))
    ruler.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ruler.set_minor_formatter(NullFormatter())
    if bounds is not None and (below := bounds <= 0).any():  # an interval that reaches 0 has no end on a log scale
        low = min(values.min(), bounds[~below].min()) / 2
        (axes.set_ylim if axis == "y" else axes.set_xlim)(low, 1.5 * bounds.max())


def _nothing(axes: Axes, sentence: str) -> None:
    axes.text(0.5, 0.5, sentence, transform=axes.transAxes, ha="center", va="center", fontsize=10, color=MUTED)
    axes.tick_params(labelleft=False, labelbottom=False)


class Level(NamedTuple):
    """A horizontal line and its name; without a `dash` it lies off the chart, and only its name is written."""

    value: float
    label: str
    colour: str
    dash: str


def _baseline_level(name: str, figure: Interval, others: list[float]) -> Level:
    """The best baseline's line; far from all `others` it would squash them, and an arrow says where it is."""
    span = max(others) - min(others) or 1.0
    if min(others) - span / 2 <= figure.mean <= max(others) + span / 2:
        return Level(figure.mean, f"best baseline\n{name}", MUTED, "--")
    arrow = "↑" if figure.mean > max(others) else "↓"
    return Level(figure.mean, f"best baseline\n{name}\n{arrow} {written(figure).split()[0]}", MUTED, "")


def _ends(figure: Interval) -> tuple[float, float]:
    """Both ends of an interval; its mean where it has no width."""
    half = figure.ci95 if math.isfinite(figure.ci95) else 0.0
    return figure.mean - half, figure.mean + half


def _label_levels(axes: Axes, levels: list[Level]) -> None:
    """Name horizontal lines at the right edge, moved apart where they would touch."""
    axes.get_ylim()  # settles the scale
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    spots = sorted(
        (min(max(float(to_axes((0, each.value))[1]), 0.03), 0.93), each.label, each.colour) for each in levels
    )
    floor = -math.inf
    for at, label, colour in spots:
        height = max(at, floor)
        floor = height + 0.15
        axes.text(1.01, height, label, transform=axes.transAxes, va="center", fontsize=9, color=colour)


def _decisions(strip: Axes, rounds: Sequence[Mapping[str, Any]]) -> None:
    """A line of marks under the chart, with a few words at all but "continue"."""
    from matplotlib.ticker import MaxNLocator

    quiet(strip, "", grid="both")
    strip.grid(False)
    strip.spines["left"].set_visible(False)
    strip.set_yticks([0], ["decision"])
    strip.set_ylim(-2.6, 0.8)
    strip.set_xlabel("round", fontsize=9, color=MUTED)
    strip.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    span = max(len(rounds), 2)
    free = [-math.inf, -math.inf]  # up to where each of two lines of words is taken
    for entry in rounds:
        decision, number = entry.get("decision") or {}, int(entry["number"])
        action = decision.get("action")
        if action not in MARKS:
            continue
        marker, colour = MARKS[action]
        strip.plot([number], [0], marker=marker, color=colour, markersize=4 if action == "continue" else 7, gid=action)
        if action == "continue":
            continue
        words = _words(decision)
        half = span * len(words) / 2 / 92  # a line takes about 92 characters
        line = 0 if number - half >= free[0] else 1
        free[line] = number + half
        strip.text(number, -0.75 - 0.95 * line, words, fontsize=8, color=colour, ha="center", va="top")


def _words(decision: Mapping[str, Any]) -> str:
    changed = ", ".join(
        f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in (decision.get("settings") or {}).items()
    )
    if decision["action"] == "change":
        return changed or "change"
    if decision["action"] == "rollback":
        return f"back to {decision.get('to_round', 'the best')}"
    outcome = str(decision.get("outcome") or "")
    return f"stop: {outcome.lower().replace('_', ' ')}" if outcome else "stop"
