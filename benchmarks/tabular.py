"""Compare the in-context estimators with those of scikit-learn on small real tables.

    OMP_NUM_THREADS=1 python benchmarks/tabular.py [--rows 30 100 1000] [--splits 5] [--task classification]
    OMP_NUM_THREADS=1 python benchmarks/tabular.py --task regression [--school ../shared/data/school]

Tables with classes are those of `small_tables.compared`, of R's packages and scikit-learn, on none of which the weights
that come with kshot were trained. Tables with a numeric target are from scikit-learn, and from single schools of London
if `--school` exists. Each split samples `--rows` rows of a table for training, stratified by class, and up to 300
others for testing; all methods use the same rows, and tables of fewer than 1.25 times the rows are left out. A score is
the mean over splits. The difference to the in-context estimator is paired by split, then averaged within tables, and
its interval is over tables. Scores are saved in `--out` and reused.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn import datasets
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeCV
from sklearn.metrics import log_loss, r2_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from small_tables import compared

import kshot
from kshot.evaluation.evaluate import interval
from kshot.integrations.sklearn import TabularClassifier, TabularRegressor

Table = tuple[pd.DataFrame, np.ndarray]
Method = Callable[[pd.DataFrame, np.ndarray, pd.DataFrame], np.ndarray]
"""Maps training inputs, training targets and test inputs to probabilities (m, classes) or values (m,)."""

GRID = {"learning_rate": [0.05, 0.2], "min_samples_leaf": [3, 10]}
OURS, UNTRAINED = "in-context", "in-context, untrained"


def classification_tables() -> dict[str, Table]:
    """Tables with class labels 0 … C-1."""
    return {
        name: (pd.DataFrame(columns), np.unique(classes, return_inverse=True)[1])
        for name, columns, classes in compared()
    }


def regression_tables(schools: Path | None) -> dict[str, Table]:
    """Tables with a numeric target."""
    x, y = datasets.load_diabetes(return_X_y=True)
    tables: dict[str, Table] = {"diabetes": (pd.DataFrame(x), y)}
    for name, load, column in (
        ("iris petal width", datasets.load_iris, 3),
        ("iris sepal width", datasets.load_iris, 1),
        ("wine alcohol", datasets.load_wine, 0),
        ("wine colour", datasets.load_wine, 9),
        ("breast cancer texture", datasets.load_breast_cancer, 1),
        ("breast cancer smoothness", datasets.load_breast_cancer, 4),
    ):
        x = load().data
        tables[name] = pd.DataFrame(np.delete(x, column, 1)), x[:, column]
    return tables | {f"school {number}": table for number, table in pupils(schools)}


def pupils(schools: Path | None) -> Iterator[tuple[int, Table]]:
    """The five largest schools: 27 columns per pupil, and the exam score."""
    if schools is None or not schools.exists():
        return
    from scipy.io import loadmat

    content = loadmat(schools / "school.mat")
    sizes = [len(y) for y in content["Y"][0]]
    for number in sorted(np.argsort(sizes)[-5:].tolist()):
        x, y = content["X"][0, number][:, :-1], content["Y"][0, number][:, 0]
        yield number + 1, (pd.DataFrame(x.astype(float)), y.astype(float))


def numbers(model: Any) -> Any:
    """A model on standardised numbers, with indicators of missing ones, and on one-hot categories."""
    words = make_column_selector(dtype_exclude="number")
    encoded = make_column_transformer(
        (
            make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()),
            make_column_selector(dtype_include="number"),
        ),
        (OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=2, sparse_output=False), words),
    )
    return make_pipeline(encoded, model)


def classifiers() -> dict[str, Method]:
    """The classifiers; hyperparameters are tuned by cross-validation on the training rows."""

    def folds(y: np.ndarray) -> StratifiedKFold:
        return StratifiedKFold(min(3, max(2, np.bincount(y).min())), shuffle=True, random_state=0)

    def method(make: Callable[[np.ndarray], Any]) -> Method:
        return lambda x, y, test_x: make(y).fit(x, y).predict_proba(test_x)

    return {
        OURS: method(lambda y: TabularClassifier()),
        UNTRAINED: method(lambda y: TabularClassifier(learner=kshot.learners.prior_fitted())),
        "logistic regression": method(lambda y: numbers(LogisticRegression(max_iter=2000))),
        "logistic regression, tuned": method(
            lambda y: numbers(
                LogisticRegressionCV(
                    Cs=np.logspace(-3, 2, 6), cv=folds(y), max_iter=2000, scoring="neg_log_loss", l1_ratios=(0.0,)
                )
            )
        ),
        "random forest": method(lambda y: numbers(RandomForestClassifier(random_state=0))),
        "random forest, tuned": method(
            lambda y: GridSearchCV(
                numbers(RandomForestClassifier(random_state=0)),
                {"randomforestclassifier__min_samples_leaf": [1, 3, 10]},
                cv=folds(y),
                scoring="neg_log_loss",
            )
        ),
        "histogram boosting": method(lambda y: numbers(HistGradientBoostingClassifier(random_state=0))),
        "histogram boosting, tuned": method(
            lambda y: GridSearchCV(
                numbers(HistGradientBoostingClassifier(max_iter=50, random_state=0)),
                {f"histgradientboostingclassifier__{name}": values for name, values in GRID.items()},
                cv=folds(y),
                scoring="neg_log_loss",
            )
        ),
    }


def regressors() -> dict[str, Method]:
    """The regressors."""

    def method(make: Callable[[], Any]) -> Method:
        return lambda x, y, test_x: make().fit(x, y).predict(test_x)

    folds = KFold(3, shuffle=True, random_state=0)
    untrained = kshot.learners.prior_fitted(objective=kshot.objectives.gaussian)
    return {
        OURS: method(lambda: TabularRegressor()),
        UNTRAINED: method(lambda: TabularRegressor(learner=untrained)),
        "ridge, tuned": method(lambda: numbers(RidgeCV(np.logspace(-2, 3, 11)))),
        "random forest": method(lambda: numbers(RandomForestRegressor(random_state=0))),
        "gradient boosting": method(lambda: numbers(GradientBoostingRegressor(random_state=0))),
        "histogram boosting": method(lambda: numbers(HistGradientBoostingRegressor(random_state=0))),
        "histogram boosting, tuned": method(
            lambda: GridSearchCV(
                numbers(HistGradientBoostingRegressor(max_iter=50, random_state=0)),
                {f"histgradientboostingregressor__{name}": values for name, values in GRID.items()},
                cv=folds,
            )
        ),
    }


def score(prediction: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The metrics of a prediction on test rows."""
    if prediction.ndim == 1:
        return {"r2": float(r2_score(y, prediction))}
    classes = np.arange(prediction.shape[1])
    probability = prediction[:, 1] if len(classes) == 2 else prediction
    auc = roc_auc_score(y, probability, multi_class="ovr", labels=classes if len(classes) > 2 else None)
    return {
        "accuracy": float((prediction.argmax(1) == y).mean()),
        "auc": float(auc),
        "log_loss": float(log_loss(y, np.clip(prediction, 1e-6, 1), labels=classes)),
    }


def split(table: Table, rows: int, number: int) -> Any:
    """Split `number` of a table: training and test inputs, training and test targets."""
    x, y = table
    classes = y if y.dtype.kind == "i" else None
    test = min(300, len(y) - rows)
    return train_test_split(x, y, train_size=rows, test_size=test, stratify=classes, random_state=number)


def measure(
    tables: dict[str, Table], methods: dict[str, Method], rows: int, splits: int, out: Path
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Table name to method name to the metrics of each split."""
    scores: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name, table in tables.items():
        if len(table[1]) < 1.25 * rows:
            continue
        scores[name] = {}
        for method, predict in methods.items():
            path = out / re.sub(r"[^\w,.]+", "-", f"{name}, {method}, {rows} rows, {splits} splits.json")
            if not path.exists():
                figures = []
                for number in range(splits):
                    x, test_x, y, test_y = split(table, rows, number)
                    started = time.perf_counter()
                    figures.append(score(predict(x, y, test_x), test_y) | {"seconds": time.perf_counter() - started})
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(figures))
            scores[name][method] = json.loads(path.read_text())
    return scores


def report(scores: dict[str, dict[str, list[dict[str, float]]]], metric: str, *, higher: bool = True) -> None:
    """Print a row per method: mean over tables, mean rank, and the lead of the in-context learner with its interval."""
    methods = list(next(iter(scores.values())))
    values = {
        method: np.array([[split[metric] for split in table[method]] for table in scores.values()])
        for method in methods
    }  # (tables, splits)
    means = np.array([values[method].mean(1) for method in methods])  # (methods, tables)
    ranks = np.array([rankdata(-column if higher else column) for column in means.T]).mean(0)
    seconds = [
        np.median([split["seconds"] for table in scores.values() for split in table[method]]) for method in methods
    ]
    print(f"\n| {metric}, {len(scores)} tables | mean | mean rank | lead of {OURS} | tables won, lost | ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for i in np.argsort(ranks):
        method, sign = methods[i], 1 if higher else -1
        lead, wins = "–", "–"
        if method != OURS:
            gaps = sign * (values[OURS] - values[method])
            over_tables = interval(gaps.mean(1).tolist())
            lead = f"{over_tables.mean:+.4f} ± {over_tables.ci95:.4f}"
            by_table = [interval(row.tolist()) for row in gaps]
            won = sum(each.mean > each.ci95 for each in by_table)
            wins = f"{won}, {sum(each.mean < -each.ci95 for each in by_table)}"
        cells = [
            method,
            f"{means[i].mean():.4f}",
            f"{ranks[i]:.2f}",
            lead,
            wins,
            f"{1e3 * seconds[i]:.0f}",
        ]
        print(f"| {' | '.join(cells)} |")


def each_table(scores: dict[str, dict[str, list[dict[str, float]]]], metric: str) -> None:
    """Print the mean of every table."""
    methods = list(next(iter(scores.values())))
    print(f"\n| {metric} | {' | '.join(methods)} |\n|{' --- |' * (1 + len(methods))}")
    for name, table in scores.items():
        cells = [interval([split[metric] for split in table[method]]) for method in methods]
        print(f"| {name} | {' | '.join(f'{cell.mean:.3f} ± {cell.ci95:.3f}' for cell in cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["classification", "regression"], default="classification")
    parser.add_argument("--rows", type=int, nargs="+", default=[30, 100])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="methods")
    parser.add_argument("--school", type=Path, default=Path("../shared/data/school"))
    parser.add_argument("--out", type=Path, default=Path("runs/tabular-scores"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # from scikit-learn, about folds with few rows of a class
    classifies = options.task == "classification"
    tables = classification_tables() if classifies else regression_tables(options.school)
    methods = classifiers() if classifies else regressors()
    if options.only:
        methods = {name: methods[name] for name in options.only}
    for rows in options.rows:
        scores = measure(tables, methods, rows, options.splits, options.out / str(rows))
        print(f"\n## {options.task}, {rows} rows, {options.splits} splits")
        for metric in ("accuracy", "auc", "log_loss") if classifies else ("r2",):
            report(scores, metric, higher=metric != "log_loss")
        each_table(scores, "auc" if classifies else "r2")


if __name__ == "__main__":
    main()
