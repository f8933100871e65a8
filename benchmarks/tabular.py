"""The in-context learner of tables beside logistic regression and gradient boosting, on small real tables.

    kshot run tabular --out runs/tabular                          # on synthetic tables alone; --resume goes on
    kshot run tabular-regression --out runs/tabular-regression
    OMP_NUM_THREADS=1 python benchmarks/tabular.py [--rows 30 100] [--splits 20] [--school ../shared/data/school]

Tables are scikit-learn's, and pupils of single schools of London where `--school` is there. Of each table `--rows` rows
are drawn for training, classes kept in proportion, and up to 300 others for testing; all methods see the same ones. A
figure is the mean over splits; the difference from the in-context learner is taken split by split, then averaged within
tables, and its interval is over tables. What is scored is kept in `--out`, and not scored again.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeCV
from sklearn.metrics import log_loss, r2_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import kshot
from kshot.evaluation.evaluate import interval

Table = tuple[np.ndarray, np.ndarray]
Method = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(training inputs, training targets, test inputs) -> probabilities (m, classes), or values (m,)."""

GRID = {"learning_rate": [0.05, 0.2], "min_samples_leaf": [3, 10]}
OURS, START = "in-context", "its start, untrained"


def classification_tables(schools: Path | None) -> dict[str, Table]:
    """Tables with classes 0 … C-1."""
    tables = {
        name: load(return_X_y=True)
        for name, load in (
            ("iris", datasets.load_iris),
            ("wine", datasets.load_wine),
            ("breast cancer", datasets.load_breast_cancer),
            ("digits", datasets.load_digits),
        )
    }
    x, y = tables["breast cancer"]
    tables["breast cancer, means"] = x[:, :10], y
    x, y = tables["iris"]
    tables["iris, sepals"] = x[:, :2], y
    x, y = tables["wine"]
    tables["wine, 4 columns"] = x[:, :4], y
    x, y = tables["digits"]
    tables["digits, 10 components"] = PCA(10, random_state=0).fit_transform(x), y
    for a, b in ((3, 8), (1, 7), (4, 9)):
        of_pair = (y == a) | (y == b)
        tables[f"digits {a} or {b}"] = x[of_pair], (y[of_pair] == b).astype(int)
    tables["digits, odd"] = x, y % 2
    x, y = datasets.load_diabetes(return_X_y=True)
    tables["diabetes above median"] = x, (y > np.median(y)).astype(int)
    for number, (x, y) in pupils(schools):
        tables[f"school {number} above median"] = x, (y > np.median(y)).astype(int)
    return tables


def regression_tables(schools: Path | None) -> dict[str, Table]:
    """Tables with numbers to predict."""
    tables = {"diabetes": datasets.load_diabetes(return_X_y=True)}
    for name, load, column in (
        ("iris petal width", datasets.load_iris, 3),
        ("iris sepal width", datasets.load_iris, 1),
        ("wine alcohol", datasets.load_wine, 0),
        ("wine colour", datasets.load_wine, 9),
        ("breast cancer texture", datasets.load_breast_cancer, 1),
        ("breast cancer smoothness", datasets.load_breast_cancer, 4),
    ):
        x = load().data
        tables[name] = np.delete(x, column, 1), x[:, column]
    return tables | {f"school {number}": table for number, table in pupils(schools)}


def pupils(schools: Path | None) -> Iterator[tuple[int, Table]]:
    """The five largest schools: 27 columns of a pupil, and the exam score."""
    if schools is None or not schools.exists():
        return
    from scipy.io import loadmat

    content = loadmat(schools / "school.mat")
    sizes = [len(y) for y in content["Y"][0]]
    for number in sorted(np.argsort(sizes)[-5:].tolist()):
        yield number + 1, (content["X"][0, number][:, :-1].astype(float), content["Y"][0, number][:, 0].astype(float))


def standardized(model: Any) -> Any:
    return make_pipeline(StandardScaler(), model)


def classifiers() -> dict[str, Method]:
    """The classifiers to stand beside; tuned ones by cross-validation on the training rows."""

    def folds(y: np.ndarray) -> StratifiedKFold:
        return StratifiedKFold(min(3, np.bincount(y).min()), shuffle=True, random_state=0)

    def of(make: Callable[[np.ndarray], Any]) -> Method:
        return lambda x, y, asked: make(y).fit(x, y).predict_proba(asked)

    return {
        "logistic regression": of(lambda y: standardized(LogisticRegression(max_iter=1000))),
        "logistic regression, tuned": of(
            lambda y: standardized(
                LogisticRegressionCV(
                    Cs=np.logspace(-3, 2, 6), cv=folds(y), max_iter=1000, scoring="neg_log_loss", l1_ratios=(0.0,)
                )
            )
        ),
        "gradient boosting": of(lambda y: GradientBoostingClassifier(random_state=0)),
        "histogram boosting": of(lambda y: HistGradientBoostingClassifier(random_state=0)),
        "histogram boosting, tuned": of(
            lambda y: GridSearchCV(
                HistGradientBoostingClassifier(max_iter=50, random_state=0), GRID, cv=folds(y), scoring="neg_log_loss"
            )
        ),
    }


def regressors() -> dict[str, Method]:
    """The regressions to stand beside."""

    def of(make: Callable[[], Any]) -> Method:
        return lambda x, y, asked: make().fit(x, y).predict(asked)

    folds = KFold(3, shuffle=True, random_state=0)
    return {
        "ridge, tuned": of(lambda: standardized(RidgeCV(np.logspace(-2, 3, 11)))),
        "gradient boosting": of(lambda: GradientBoostingRegressor(random_state=0)),
        "histogram boosting": of(lambda: HistGradientBoostingRegressor(random_state=0)),
        "histogram boosting, tuned": of(
            lambda: GridSearchCV(HistGradientBoostingRegressor(max_iter=50, random_state=0), GRID, cv=folds)
        ),
    }


def ours(learner: kshot.Learner) -> Method:
    """An in-context learner as one of them: it adapts to the training rows, and predicts the test rows."""

    def predict(x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(x).float()
        own = learner.objective.task_specific_classes
        support = (
            kshot.Batch.of(rows, torch.from_numpy(y), ways=int(y.max()) + 1)
            if own
            else kshot.Batch.of(rows, torch.from_numpy(y).float()[:, None])
        )
        with torch.no_grad():
            found = learner.predict(learner.adapt(support), torch.from_numpy(asked).float())
        return found.double().softmax(1).numpy() if own else found["mean"][:, 0].numpy()

    return predict


def score(found: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Figures of a prediction on test rows."""
    if found.ndim == 1:
        return {"r2": float(r2_score(y, found))}
    classes = np.arange(found.shape[1])
    chance = found[:, 1] if len(classes) == 2 else found
    auc = roc_auc_score(y, chance, multi_class="ovr", labels=classes if len(classes) > 2 else None)
    return {
        "accuracy": float((found.argmax(1) == y).mean()),
        "auc": float(auc),
        "log_loss": float(log_loss(y, np.clip(found, 1e-6, 1), labels=classes)),
    }


def split(table: Table, rows: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test rows number so and so: inputs, inputs, targets, targets."""
    x, y = table
    classes = y if y.dtype.kind == "i" else None
    test = min(300, len(y) - rows)
    return train_test_split(x, y, train_size=rows, test_size=test, stratify=classes, random_state=number)


def measure(
    tables: dict[str, Table], methods: dict[str, Method], rows: int, splits: int, out: Path
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Table -> method -> figures, split by split."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, table in tables.items():
        found[name] = {}
        for method, predict in methods.items():
            kept = out / f"{name}, {method}, {rows} rows, {splits} splits.json".replace(" ", "-")
            if not kept.exists():
                figures = []
                for number in range(splits):
                    x, asked, y, truth = split(table, rows, number)
                    started = time.perf_counter()
                    figures.append(score(predict(x, y, asked), truth) | {"seconds": time.perf_counter() - started})
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(figures))
            found[name][method] = json.loads(kept.read_text())
    return found


def report(found: dict[str, dict[str, list[dict[str, float]]]], metric: str, *, higher: bool = True) -> None:
    """A row for each method: mean over tables, mean rank, and the in-context learner's lead with its interval."""
    methods = list(next(iter(found.values())))
    of = {
        method: np.array([[figures[metric] for figures in own[method]] for own in found.values()]) for method in methods
    }  # (tables, splits)
    means = np.array([of[method].mean(1) for method in methods])  # (methods, tables)
    ranks = np.array([rankdata(-column if higher else column) for column in means.T]).mean(0)
    seconds = [np.median([f["seconds"] for own in found.values() for f in own[method]]) for method in methods]
    print(f"\n| {metric}, {len(found)} tables | mean | mean rank | lead of {OURS} | tables won, lost | ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for place in np.argsort(ranks):
        method, sign = methods[place], 1 if higher else -1
        lead, clear = "–", "–"
        if method != OURS:
            gaps = sign * (of[OURS] - of[method])
            over_tables = interval(gaps.mean(1).tolist())
            lead = f"{over_tables.mean:+.4f} ± {over_tables.ci95:.4f}"
            own = [interval(row.tolist()) for row in gaps]
            clear = f"{sum(each.mean > each.ci95 for each in own)}, {sum(each.mean < -each.ci95 for each in own)}"
        cells = [
            method,
            f"{means[place].mean():.4f}",
            f"{ranks[place]:.2f}",
            lead,
            clear,
            f"{1e3 * seconds[place]:.0f}",
        ]
        print(f"| {' | '.join(cells)} |")


def each_table(found: dict[str, dict[str, list[dict[str, float]]]], metric: str) -> None:
    """The means of every table."""
    methods = list(next(iter(found.values())))
    print(f"\n| {metric} | {' | '.join(methods)} |\n|{' --- |' * (1 + len(methods))}")
    for name, own in found.items():
        cells = [interval([figures[metric] for figures in own[method]]) for method in methods]
        print(f"| {name} | {' | '.join(f'{cell.mean:.3f} ± {cell.ci95:.3f}' for cell in cells)} |")


def fitted(path: Path, recipe: str) -> dict[str, Method]:
    """The in-context learner of a run, and beside it what it starts from: the mean of its closed-form fits."""
    if not path.exists():
        raise SystemExit(f"there is no {path}: train it first, with `kshot run {recipe} --out {path}`")
    learner = kshot.load(path).learner.eval()
    fresh = kshot.learners.prior_fitted(objective=learner.objective).eval()
    return {OURS: ours(learner), START: ours(fresh)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classification", type=Path, default=Path("runs/tabular"), help="run folder, or 'none'")
    parser.add_argument(
        "--regression", type=Path, default=Path("runs/tabular-regression"), help="run folder, or 'none'"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[30, 100])
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--school", type=Path, default=Path("../shared/data/school"))
    parser.add_argument("--out", type=Path, default=Path("runs/tabular-scores"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # scikit-learn's on folds with few rows of a class
    warnings.filterwarnings("ignore", category=FutureWarning)
    for rows in options.rows:
        out = options.out / str(rows)
        if options.classification != Path("none"):
            methods = fitted(options.classification, "tabular") | classifiers()
            found = measure(classification_tables(options.school), methods, rows, options.splits, out)
            print(f"\n## Classification, {rows} rows, {options.splits} splits")
            report(found, "accuracy")
            report(found, "auc")
            report(found, "log_loss", higher=False)
            each_table(found, "accuracy")
        if options.regression != Path("none"):
            methods = fitted(options.regression, "tabular-regression") | regressors()
            found = measure(regression_tables(options.school), methods, rows, options.splits, out)
            print(f"\n## Regression, {rows} rows, {options.splits} splits")
            report(found, "r2")
            each_table(found, "r2")


if __name__ == "__main__":
    main()
