"""Charts of a run's training: the loss curve, and the rounds with their decisions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kshot.evaluation.intervals import Interval
from kshot.evaluation.report.formatting import format_figure, read_figure
from kshot.evaluation.report.style import BLUE, GREEN, MARKS, MUTED, PURPLE, RED, canvas, empty, ends, log_scale, quiet
from kshot.evaluation.target import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def learning_curve(events: Sequence[Mapping[str, Any]]) -> Figure:
    """The loss over the steps of meta-training, and of pretraining in a panel beside it if there was any.

    Args:
        events: events of a run's log; those of kind "train" and "pretrain" have `step` and `loss`. A later event
            replaces an earlier one of the same step, which a resumed run repeats.

    Example:
        >>> figure = learning_curve([{"kind": "train", "step": 10 * i, "loss": 1 / i} for i in range(1, 50)])
        >>> len(figure.axes)
        1
    """
    titles = {"pretrain": "Pretraining loss", "train": "Meta-training loss"}
    curves = {kind: _losses(events, kind) for kind in titles}
    kinds = [kind for kind, curve in curves.items() if curve] or ["train"]
    figure = canvas(2.9)
    ratios = [2 if kind == "train" else 1 for kind in kinds]
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False, width_ratios=ratios)[0], kinds):
        quiet(axes, titles[kind], xlabel="step")
        steps, losses = np.array(sorted(curves[kind].items())).reshape(-1, 2).T
        finite = np.isfinite(losses)
        for step in steps[~finite]:
            axes.axvline(step, color=RED, linewidth=1)
            axes.text(step, 1, " not finite", color=RED, fontsize=8, va="top", transform=axes.get_xaxis_transform())
        steps, losses = steps[finite], losses[finite]
        if not len(losses):
            empty(axes, "no finite loss was recorded")
            continue
        axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=1, gid="recorded")
        dot = "o" if len(losses) == 1 else None
        axes.plot(steps, _smooth(losses), color=BLUE, linewidth=2, marker=dot, gid="smooth")
        log_scale(axes, "y", losses)
    return figure


def _losses(events: Sequence[Mapping[str, Any]], kind: str) -> dict[float, float]:
    chosen = [event for event in events if event.get("kind") == kind and event.get("step") is not None]
    return {event["step"]: math.nan if event.get("loss") is None else float(event["loss"]) for event in chosen}


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred moving mean over about a fifteenth of the points, with a narrower window towards the ends."""
    index = np.arange(len(values))
    half = np.minimum(len(values) // 30, np.minimum(index, index[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)


def rounds_chart(
    rounds: Sequence[Mapping[str, Any]], target: str, *, baseline: tuple[str, Interval] | None = None
) -> Figure:
    """The validation figure of each round against the target, and the decision that followed.

    Args:
        rounds: dicts with `number`, `val` {metric: {mean, ci95, num_tasks}}, `diverged`, and optionally `decision`
            {action, settings, to_round, outcome, predicted [[step, mean, low, high], ...]}. One prediction is drawn:
            the last that led to a decision other than "continue", otherwise the first.
        target: target, such as "accuracy >= 0.9"; ValueError if it cannot be parsed.
        baseline: name and figure of the best baseline for a dashed line; see `best_baseline`.

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
    figures = {int(entry["number"]): read_figure(entry.get("val"), metric) for entry in rounds}
    finite = {number: each for number, each in figures.items() if math.isfinite(each.mean)}
    num_tasks = max((each.num_tasks for each in finite.values()), default=0)
    sample = f", mean ± 95 % interval over {num_tasks} tasks" if num_tasks else ""
    quiet(axes, f"Validation {metric} after each round{sample}")
    axes.tick_params(bottom=False, labelbottom=False)

    made_in, coming = _prediction(rounds)
    latest = max([*figures, *(each[0] for each in coming)], default=1)
    bounds = [end for each in finite.values() for end in ends(each)] + [end for each in coming for end in each[2:]]
    levels = [_Level(value, f"target {'≥' if at_least else '≤'} {value:g}", GREEN, "-")]
    if baseline is not None and math.isfinite(baseline[1].mean):
        levels.append(_baseline_level(*baseline, [*bounds, value]))
    if coming:
        levels.append(_Level(coming[-1][1], f"predicted after\nround {made_in}", PURPLE, ""))
    for level in levels:
        if level.dash:
            axes.axhline(level.value, color=level.colour, linewidth=1.3, linestyle=level.dash, zorder=1)
    if finite:
        numbers, means = list(finite), [each.mean for each in finite.values()]
        halves = np.array([(each.mean - ends(each)[0], ends(each)[1] - each.mean) for each in finite.values()]).T
        axes.plot(numbers, means, color=BLUE, alpha=0.35, linewidth=1.2, zorder=2)
        axes.errorbar(numbers, means, halves, fmt="o", color=BLUE, markersize=5, elinewidth=1.6, capsize=0, zorder=3)
        if coming:
            _draw_prediction(axes, coming, made_in, finite[made_in].mean)
        best = (max if at_least else min)(finite, key=lambda number: finite[number].mean)
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": BLUE, "linewidths": 1.4}
        axes.scatter([best], [finite[best].mean], s=110, **ring, zorder=4, gid="best")
        above: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9, "color": BLUE, "fontweight": "bold"}
        upper = at_least != (best == made_in)  # on the other side than the prediction that begins there
        above |= {"xytext": (0, 9), "va": "bottom"} if upper else {"xytext": (0, -9), "va": "top"}
        side = "right" if best > (min(figures) + latest) / 2 else "left"
        edge = ends(finite[best])[1 if upper else 0]
        axes.annotate(f"best: {format_figure(finite[best])}", (best, edge), **above, ha=side)
        if not at_least:
            drawn = [level.value for level in levels if level.dash]
            log_scale(axes, "y", np.array([*means, *drawn]), np.array(bounds))
        axes.margins(y=0.14)
    else:
        empty(axes, "no round was evaluated")
    _label_levels(axes, levels)
    for number in figures.keys() - finite.keys():
        axes.axvspan(number - 0.4, number + 0.4, color=RED, alpha=0.08, linewidth=0)
        spot: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "rotation": 90, "ha": "center", "va": "bottom"}
        axes.text(number, 0.03, "diverged", **spot, color=RED, fontsize=9)
    _decisions(strip, rounds)
    strip.set_xlim(min(figures, default=1) - 0.6, latest + 0.6)
    return figure


def _prediction(rounds: Sequence[Mapping[str, Any]]) -> tuple[int, list[tuple[float, float, float, float]]]:
    """The round after which the prediction that is drawn was made, and its points: round, mean, low and high."""
    made = [entry for entry in rounds if (entry.get("decision") or {}).get("predicted")]
    if not made:
        return 0, []
    deciding = [entry for entry in made if entry["decision"]["action"] != "continue"]
    entry = deciding[-1] if deciding else made[0]
    number, step, points = int(entry["number"]), entry["step"], entry["decision"]["predicted"]
    per_round = step - next((each["step"] for each in rounds if int(each["number"]) == number - 1), 0)
    return number, [(number + (at - step) / max(per_round, 1), *figures) for at, *figures in points]


def _draw_prediction(
    axes: Axes, coming: Sequence[tuple[float, float, float, float]], made_in: int, start: float
) -> None:
    """The predicted figures, dashed, with the band of their intervals, from the round that they were made in."""
    numbers, means, low, high = np.array([(made_in, start, start, start), *coming]).T
    axes.fill_between(numbers, low, high, color=PURPLE, alpha=0.13, linewidth=0, zorder=1, gid="predicted")
    axes.plot(numbers, means, color=PURPLE, linewidth=1.4, linestyle="--", zorder=2)


class _Level(NamedTuple):
    """A labelled horizontal line; without a `dash` it is off the chart, and only the label is drawn."""

    value: float
    label: str
    colour: str
    dash: str


def _baseline_level(name: str, figure: Interval, others: list[float]) -> _Level:
    """The line of the best baseline, or an arrow if it is so far from all `others` that it would squash them."""
    span = max(others) - min(others) or 1.0
    if min(others) - span / 2 <= figure.mean <= max(others) + span / 2:
        return _Level(figure.mean, f"best baseline\n{name}", MUTED, "--")
    arrow = "↑" if figure.mean > max(others) else "↓"
    return _Level(figure.mean, f"best baseline\n{name}\n{arrow} {format_figure(figure).split()[0]}", MUTED, "")


def _label_levels(axes: Axes, levels: list[_Level]) -> None:
    """Label horizontal lines at the right edge, shifted apart where labels would overlap."""
    axes.get_ylim()  # fixes the scale
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    floor = 0.03
    for each in sorted(levels, key=lambda level: level.value):
        height = max(min(float(to_axes((0, each.value))[1]), 0.93), floor)
        floor = height + 0.15
        axes.text(1.01, height, each.label, transform=axes.transAxes, va="center", fontsize=9, color=each.colour)


def _decisions(strip: Axes, rounds: Sequence[Mapping[str, Any]]) -> None:
    """A row of marks under the chart, labelled for all decisions other than "continue"."""
    from matplotlib.ticker import MaxNLocator

    quiet(strip, "", grid="both", xlabel="round")
    strip.grid(False)
    strip.spines["left"].set_visible(False)
    strip.set_yticks([0], ["decision"])
    strip.set_ylim(-2.6, 0.8)
    strip.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    span = max(len(rounds), 2)
    free = [-math.inf, -math.inf]  # x from which each of two text lines is free
    for entry in rounds:
        decision, number = entry.get("decision") or {}, int(entry["number"])
        action = decision.get("action")
        if action not in MARKS:
            continue
        marker, colour = MARKS[action]
        strip.plot([number], [0], marker=marker, color=colour, markersize=4 if action == "continue" else 7, gid=action)
        if action == "continue":
            continue
        label = _label(decision)
        half = span * len(label) / 2 / 92  # a line takes about 92 characters
        line = 0 if number - half >= free[0] else 1
        free[line] = number + half
        strip.text(number, -0.75 - 0.95 * line, label, fontsize=8, color=colour, ha="center", va="top")


def _label(decision: Mapping[str, Any]) -> str:
    if decision["action"] == "change":
        settings = (decision.get("settings") or {}).items()
        return ", ".join(f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in settings) or "change"
    if decision["action"] == "rollback":
        return f"back to {decision.get('to_round', 'the best')}"
    outcome = str(decision.get("outcome") or "")
    return f"stop: {outcome.lower().replace('_', ' ')}" if outcome else "stop"
