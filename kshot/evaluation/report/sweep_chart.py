"""How settings were found: the chart of a search and its table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kshot.evaluation.report.formatting import as_interval, format_duration, format_figure, format_setting, rank_key
from kshot.evaluation.report.parts import Column, Picture, Row, Section, Table
from kshot.evaluation.report.style import BLUE, MUTED, canvas, empty, log_scale, quiet
from kshot.evaluation.target import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 100
"""Trials in the table, the best first."""


def sweep_chart(sweep: Mapping[str, Any], target: Target) -> Figure:
    """The validation figure of each trial, those that were stopped early hollow, and the best so far as a line.

    Args:
        sweep: entry "sweep" of a report: `trials` with `number`, `state`, `figure` and `kept`.
        target: its metric and direction.

    Example:
        >>> figures = [{"mean": mean, "ci95": 0.1, "num_tasks": 20} for mean in (0.5, 0.7, 0.6)]
        >>> trials = [{"number": number, "state": "COMPLETE", "figure": each, "kept": number == 1}
        ...     for number, each in enumerate(figures)]
        >>> figure = sweep_chart({"trials": trials}, Target("accuracy", True, 0.9))
        >>> figure.axes[0].lines[0].get_ydata().tolist()
        [0.5, 0.7, 0.7]
    """
    from matplotlib.ticker import MaxNLocator

    figure = canvas(3.0)
    axes = figure.subplots()
    quiet(axes, f"Validation {target.metric} of each trial, and of the best so far", xlabel="trial")
    trials = [each for each in sweep["trials"] if each["figure"] and math.isfinite(each["figure"]["mean"])]
    if not trials:
        empty(axes, "no trial has a figure")
        return figure
    number_T = np.array([each["number"] for each in trials])
    mean_T = np.array([each["figure"]["mean"] for each in trials])
    best_T = np.maximum.accumulate(mean_T) if target.at_least else np.minimum.accumulate(mean_T)
    stopped_T = np.array([each["state"] != "COMPLETE" for each in trials])
    axes.step(number_T, best_T, where="post", color=BLUE, linewidth=1.6, zorder=2)
    for stopped, face in ((True, "white"), (False, MUTED)):
        which = stopped_T == stopped
        style: dict[str, Any] = {"facecolor": face, "edgecolor": MUTED, "zorder": 3}
        axes.scatter(number_T[which], mean_T[which], s=20, linewidth=1.0, **style)
    kept = next((index for index, each in enumerate(trials) if each["kept"]), None)
    if kept is not None:
        axes.scatter(number_T[kept], mean_T[kept], s=46, color=BLUE, zorder=4)
    axes.margins(x=0.03, y=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not target.at_least and (mean_T > 0).all():
        log_scale(axes, "y", mean_T)
    return figure


def sweep_section(report: Mapping[str, Any], pictures: list[Picture]) -> Section:
    """The section of a report on the search of its settings; without content if there was none."""
    sweep = report.get("sweep")
    if not sweep:
        return Section("How these settings were found")
    trials = sweep["trials"]
    paths = list(sweep["space"])
    columns = [
        Column("", "name"),
        Column("validation"),
        *(Column(path, "n") for path in paths),
        Column("rounds", "n"),
        Column("time", "n"),
        Column("", "text"),
    ]
    higher = bool(report.get("higher_is_better"))
    ranked = sorted(trials, key=lambda each: rank_key(as_interval(each["figure"]).mean, higher))
    left_out = len(ranked) - MOST_ROWS
    return Section(
        "How these settings were found",
        [
            f"{sweep['reason'][:1].upper()}{sweep['reason'][1:]}.",
            f"All were compared by {sweep['metric']} on the same validation tasks. The best of many is somewhat worse "
            "on the test, which was read once, for the trial that was kept.",
        ],
        pictures,
        Table(columns, [_row(each, paths) for each in ranked[:MOST_ROWS]]),
        note=f"The {left_out} worst trials are in report.json." if left_out > 0 else "",
    )


def _row(trial: Mapping[str, Any], paths: list[str]) -> Row:
    stopped = "stopped early" if trial["state"] == "PRUNED" else ""
    return Row(
        [
            f"trial {trial['number']}",
            format_figure(as_interval(trial["figure"])) if trial["figure"] else "–",
            *(shown_value(trial["settings"].get(path)) for path in paths),
            str(trial["rounds"]),
            format_duration(trial["seconds"]),
            trial["failure"] or ("kept" if trial["kept"] else stopped),
        ],
        "main" if trial["kept"] else "muted" if trial["failure"] else "",
    )


def shown_value(value: Any) -> str:
    """The value of a setting, short.

    Example:
        >>> shown_value(0.0123456), shown_value(3), shown_value("anil")
        ('0.01235', '3', 'anil')
    """
    return f"{value:.4g}" if isinstance(value, float) else format_setting(value)
