"""How a plan was chosen: the chart of the race and its table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kshot.evaluation.intervals import Interval
from kshot.evaluation.report.formatting import as_interval, format_figure, format_value, rank_key
from kshot.evaluation.report.parts import Column, Picture, Row, Section, Table
from kshot.evaluation.report.style import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    PURPLE,
    RED,
    canvas,
    empty,
    ends,
    log_scale,
    quiet,
)
from kshot.evaluation.target import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = (BLUE, ORANGE, GREEN, PURPLE, RED, MUTED)
"""The colours of parts."""
MOST_NAMED = 6
"""Plans in colour and with a name in the chart; others are pale."""


def race_chart(choice: Mapping[str, Any], target: Target) -> Figure:
    """The validation figure of each plan over the time that it was given, what was expected of it dashed, and the best
    simple baseline as a line.

    Args:
        choice: entry "choice" of a report: `entrants` with `name`, `simple`, `kept`, `course` (pairs of seconds and an
            interval), and `expected`.
        target: its metric and direction.

    Example:
        >>> course = [[10.0, {"mean": 0.5, "ci95": 0.1, "num_tasks": 20}]]
        >>> entrant = {"name": "maml", "simple": False, "kept": True, "course": course, "expected": 0.6}
        >>> len(race_chart({"entrants": [entrant]}, Target("accuracy", True, 0.9)).axes)
        1
    """
    figure = canvas(3.6)
    axes = figure.subplots()
    quiet(axes, f"Validation {target.metric} of each plan over the time that it was given", xlabel="seconds")
    sign = -1 if target.at_least else 1
    entrants = [each for each in choice["entrants"] if each["course"] and not each.get("failure")]
    entrants.sort(key=lambda each: sign * each["course"][-1][1]["mean"])
    plans, simple = ([each for each in entrants if each["simple"] is which] for which in (False, True))
    if not entrants:
        empty(axes, "no plan has a figure")
        return figure
    labels: list[tuple[float, str, str]] = []
    for number, entrant in reversed(list(enumerate(plans))):
        seconds = [point[0] for point in entrant["course"]]
        means = [point[1]["mean"] for point in entrant["course"]]
        named = number < MOST_NAMED
        colour = BLUE if entrant["kept"] else MUTED
        style: dict[str, Any] = {
            "color": colour,
            "alpha": 1.0 if named else 0.35,
            "zorder": 3 if entrant["kept"] else 2,
        }
        axes.plot(seconds, means, marker="o", markersize=4, linewidth=2 if entrant["kept"] else 1.2, **style)
        if entrant["kept"]:
            low, high = ends(as_interval(entrant["course"][-1][1]))
            axes.plot([seconds[-1]] * 2, [low, high], **style)
        if named:
            expected = entrant.get("expected")
            if expected is not None and math.isfinite(expected):
                axes.plot([seconds[0], seconds[-1]], [expected] * 2, linestyle="--", linewidth=1, **style)
            labels.append((means[-1], f"{entrant['name']}{' (kept)' * entrant['kept']}", colour))
    if simple:
        best = simple[0]
        level = best["course"][-1][1]["mean"]
        axes.axhline(level, color=MUTED, linestyle=":", linewidth=1.2)
        labels.append((level, f"{best['name']} (simple{', kept' * best['kept']})", BLUE if best["kept"] else MUTED))
    axes.margins(x=0.03, y=0.1)
    axes.set_xlim(left=0)
    if not target.at_least:
        log_scale(axes, "y", np.array([each["course"][-1][1]["mean"] for each in entrants]))
    _place(axes, labels)
    return figure


def regret_chart(
    values: Sequence[float], parts: Mapping[str, Sequence[float]], metric: str, *, higher_is_better: bool, learner: str
) -> Figure:
    r"""The mean regret over the tasks so far: of a learner that chooses among parts, or mixes them, and of each part.

    $$ R_t = \frac1t \sum_{s \le t} \big(e_s - \min_p e_{s,p}\big) $$

    with an error $e$, minus the metric if higher is better. A mixture may have less error than each of its parts, and
    so a negative regret.

    Args:
        values: figure of the learner on each task.
        parts: name to the figures of a part alone on the same tasks.
        learner: name of the learner.

    Example:
        >>> figure = regret_chart([0.9, 0.8], {"a": [0.9, 0.5], "b": [0.6, 0.8]}, "accuracy", higher_is_better=True,
        ...     learner="choose")
        >>> float(figure.axes[0].lines[2].get_ydata()[-1])  # the learner's, after those of the parts
        0.0
    """
    figure = canvas(3.2)
    axes = figure.subplots()
    quiet(
        axes, f"Regret in {metric}: the mean over tasks of what the best part of each task is better by", xlabel="tasks"
    )
    sign = -1 if higher_is_better else 1
    error_P = {name: sign * np.asarray(each, float) for name, each in parts.items()}
    best_T = np.min(list(error_P.values()), axis=0)
    count_T = np.arange(1, len(best_T) + 1)
    courses = {name: np.cumsum(error - best_T) / count_T for name, error in error_P.items()}
    order = sorted(courses, key=lambda name: courses[name][-1], reverse=True)
    labels: list[tuple[float, str, str]] = []
    for place, name in enumerate(order):
        named = place >= len(order) - MOST_NAMED
        axes.plot(count_T, courses[name], color=MUTED, linewidth=1.2, alpha=1.0 if named else 0.35)
        if named:
            labels.append((float(courses[name][-1]), name.replace("_", " "), MUTED))
    ours = np.cumsum(sign * np.asarray(values, float) - best_T) / count_T
    axes.plot(count_T, ours, color=BLUE, linewidth=2, zorder=3)
    labels.append((float(ours[-1]), learner, BLUE))
    axes.axhline(0, color=MUTED, linestyle=":", linewidth=1)
    last = np.array([value for value, _, _ in labels])
    if len(last) > 2 and np.isfinite(last).all():  # a part that fails on a task must not hide the others
        axes.set_ylim(min(0.0, ours.min(), last.min()), 1.15 * max(2 * float(np.median(last)), ours[-1]))
    low, high = axes.get_ylim()
    _place(axes, [(min(max(value, low), high), name, colour) for value, name, colour in labels])
    return figure


def weights_chart(weights: Mapping[str, Sequence[float]]) -> Figure:
    """The weights of the parts on each task, stacked; tasks in the order of their leading part.

    Args:
        weights: name to the weight of a part on each task; they sum to 1 over parts.

    Example:
        >>> len(weights_chart({"a": [1.0, 0.3], "b": [0.0, 0.7]}).axes[0].collections)
        2
    """
    figure = canvas(2.9)
    axes = figure.subplots()
    quiet(axes, "Weights of the parts on each task", xlabel="tasks, by their leading part")
    by_mean = sorted(weights, key=lambda name: -float(np.mean(weights[name])))
    weight_PT = np.array([weights[name] for name in by_mean], float)
    if len(by_mean) > len(PARTS):
        by_mean = [*by_mean[: len(PARTS) - 1], "others"]
        weight_PT = np.vstack([weight_PT[: len(PARTS) - 1], weight_PT[len(PARTS) - 1 :].sum(0, keepdims=True)])
    lead_T = weight_PT.argmax(0)
    order = np.lexsort((-weight_PT.max(0), lead_T))
    edges = np.arange(weight_PT.shape[1] + 1)
    stacked = np.vstack([np.zeros(weight_PT.shape[1]), weight_PT.cumsum(0)])[:, order]
    labels = []
    for number, name in enumerate(by_mean):
        low, high = (np.append(each, each[-1]) for each in stacked[number : number + 2])
        axes.fill_between(edges, low, high, step="post", color=PARTS[number], linewidth=0, alpha=0.85)
        share = float(weight_PT[number].mean())
        labels.append(
            ((number + 0.5) / len(by_mean), f"{name.replace('_', ' ')}: {share:.2f} in the mean", PARTS[number])
        )
    axes.set(xlim=(0, weight_PT.shape[1]), ylim=(0, 1))
    _place(axes, labels)
    return figure


def _place(axes: Any, labels: list[tuple[float, str, str]]) -> None:
    """Write the labels beside the chart at their heights, shifted apart where they would overlap."""
    axes.get_ylim()  # fixes the scale
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    floor = 0.0
    for value, text, colour in sorted(labels):
        height = max(float(to_axes((0, value))[1]), floor)
        floor = height + 0.075
        axes.text(1.01, height, text, transform=axes.transAxes, va="center", fontsize=8.5, color=colour)


def choice_section(report: Mapping[str, Any], pictures: list[Picture]) -> Section:
    """The section of a report on the choice of its plan; without content if the plan was not chosen by kshot."""
    choice = report.get("choice")
    if not choice:
        return Section("How this plan was chosen")
    columns = [
        Column("plan", "name"),
        Column("validation"),
        Column("expected"),
        Column("time", "n"),
        Column("", "text"),
    ]
    ranked = sorted(choice["entrants"], key=lambda each: (not each["course"], each["failure"] != ""))
    higher = bool(report.get("higher_is_better"))
    ranked.sort(key=lambda each: rank_key(_figure(each).mean, higher) if each["course"] else math.inf)
    splits = max((each.get("splits") or 1 for each in ranked), default=1)
    return Section(
        "How this plan was chosen",
        [
            f"{choice['reason'][:1].upper()}{choice['reason'][1:]}.",
            f"All were compared by {choice['metric']} on the same validation tasks within {choice['minutes']:g} min, "
            "and plans also by what experience expects of them, which counts more where figures are noisier. "
            "The best of several is a little worse on the test, which was read once, for the plan that was kept.",
            f"As the validation tasks are of few groups, the best were compared on {splits} splits of the groups into "
            "training and validation, apart from those of the test. Figures of one split do not compare with theirs."
            if splits > 1
            else "",
        ],
        pictures,
        Table(columns, [_row(each, choice["metric"]) for each in ranked]),
        note="Expected: a mean over similar data sets in experience, relative to the best simple baseline here.",
    )


def _figure(entrant: Mapping[str, Any]) -> Interval:
    """The validation figure by which an entrant was compared."""
    return as_interval(entrant.get("figure") or entrant["course"][-1][1])


def _row(entrant: Mapping[str, Any], metric: str) -> Row:
    figure = format_figure(_figure(entrant)) if entrant["course"] else "–"
    expected = entrant.get("expected")
    splits = entrant.get("splits") or 1
    notes = ["kept" if entrant["kept"] else "", "simple baseline" if entrant["simple"] else ""]
    notes.append(f"on {splits} splits" if splits > 1 else "")
    untried = not entrant["course"] and not entrant["failure"]
    return Row(
        [
            entrant["name"].replace("_", " "),
            figure,
            "–" if expected is None else format_value(expected),
            f"{entrant['seconds']:.0f} s",
            "not tried, as the time was over" if untried else entrant["failure"] or ", ".join(filter(None, notes)),
        ],
        "main" if entrant["kept"] else "muted" if untried or entrant["failure"] else "",
    )
