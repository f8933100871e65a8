"""Estimators that are meta-trained over the groups of rows, and adapt to a new one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from itertools import count
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from kshot.app.build import build_learner, build_model, has_head, shapes_of
from kshot.app.in_memory import as_text
from kshot.app.spec import parse_spec
from kshot.app.suitability import refuse_unsuited
from kshot.integrations.sklearn.adapted import Adapting, KShotClassifier, KShotRegressor
from kshot.integrations.sklearn.rows import Classifying, Columns, Regressing, Rows, taken
from kshot.integrations.sklearn.trained import Trained, of_table
from kshot.sources.table import table
from kshot.tasks.source import TaskSource
from kshot.training.closed_form import fit_closed_form
from kshot.training.fit import fit

MOST_ROWS = 1000
"""The most training rows that `predict` adapts to where no group is given."""


class Meta(Rows):
    """An estimator that is meta-trained over groups."""

    adapted: ClassVar[type[Adapting]]
    target_type: Literal["regression", "classification"]
    least = 2

    def __init__(
        self,
        learner: str | Mapping[str, Any] = "partial_pooling",
        *,
        model: str | Mapping[str, Any] | None = None,
        steps: int = 0,
        tasks_per_step: int = 8,
        outer_lr: float = 1e-3,
        shots: int = 5,
        queries: int = 20,
        random_state: int = 0,
    ) -> None:
        self.learner = learner
        self.model = model
        self.steps = steps
        self.tasks_per_step = tasks_per_step
        self.outer_lr = outer_lr
        self.shots = shots
        self.queries = queries
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: ArrayLike | None = None) -> Self:
        """Meta-train over the groups of rows.

        Args:
            X: DataFrame or array (n, features); missing values are NaN, categories are words of a DataFrame.
            y: (n,), the targets.
            groups: (n,), the group of each row; by default rows are dealt to groups at random, so that what is learned
                is one function of the inputs.

        Raises:
            ValueError: data that cannot be used, fewer than two groups with two rows, or a learner or model that does
                not suit a table.
        """
        columns, y = self._checked(X, y, reset=True)
        of_row = self._dealt(len(y)) if groups is None else column_or_1d(groups)
        check_consistent_length(y, of_row)
        source = self._source(columns, self._encoded(y), of_row)
        section = {"kind": "table", "path": "rows in memory", "group": "group", "target": "target"}
        values = {"name": "estimator", "source": section, "target": "loss <= 0", "seed": self.random_state}
        spec = parse_spec(as_text(values | {"learner": self.learner, "model": self.model}), type(self).__name__)
        shapes = shapes_of(source)
        refuse_unsuited(spec, source, shapes)
        learner = build_learner(spec, build_model(spec, shapes, head=has_head(spec)), shapes)
        fit_closed_form(learner, source)
        if self.steps:
            fit(
                learner, source, steps=self.steps, tasks_per_step=self.tasks_per_step, outer_lr=self.outer_lr,
                mode="auto", seed=self.random_state,
            )  # fmt: skip
        encoding = of_table(source.preprocessor, "the estimator")
        classes = tuple(getattr(self, "classes_", np.array(())).tolist())
        self.trained_ = Trained(spec, shapes, encoding, learner.eval(), classes)
        self._rows, self._groups = (columns, y), of_row
        self._estimators: dict[Any, Adapting] = {}
        return self

    def adapt(self, X: Any, y: Any) -> Any:
        """Adapt to a few rows of a new group, and return an estimator that is fitted to them."""
        check_is_fitted(self)
        return self.adapted(self.trained_).fit(X, y)

    def predict(self, X: Any, groups: ArrayLike | None = None) -> NDArray[Any]:
        """The prediction for each row, (n,).

        Args:
            groups: (n,), the group of each row. For a group of the training the learner has adapted to its training
                rows; for others, or where no groups are given, to training rows of all groups, at most `MOST_ROWS`.
                Give a few rows of a new group to `adapt` instead.
        """
        return self._by_group(X, groups)

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None) -> float:
        """R² of a regression, accuracy of a classification.

        Args:
            groups: (n,). If they are given, each group is one task: the learner adapts to `shots` random rows of it,
                and the score is that of all other rows. This is how well it does on new groups; without groups it is
                the score of `predict`.
        """
        check_is_fitted(self)
        y = column_or_1d(y)
        if groups is None:
            return float(self._metric(y, self.predict(X), sample_weight=sample_weight))
        columns, of_row, random = self._columns(X), column_or_1d(groups), check_random_state(self.random_state)
        tested, predicted = [], []
        for group in np.unique(of_row):
            rows = random.permutation(np.flatnonzero(of_row == group))
            support, query = rows[: self.shots], rows[self.shots :]
            if not len(query):
                continue
            estimator = self._adapted(taken(columns, support), y[support])
            tested.append(query)
            predicted.append(estimator.predict_columns(taken(columns, query)))
        if not tested:
            raise ValueError(f"no group has more than shots={self.shots} rows, so that none could be scored")
        scored = np.concatenate(tested)
        weight = None if sample_weight is None else np.asarray(sample_weight)[scored]
        return float(self._metric(y[scored], np.concatenate(predicted), sample_weight=weight))

    @abstractmethod
    def _metric(self, y: NDArray[Any], predicted: NDArray[Any], **options: Any) -> float:
        """The score of predictions, with `sample_weight` among the options."""

    def _source(self, columns: Mapping[str, Any], y: NDArray[Any], of_row: NDArray[Any]) -> TaskSource:
        """The groups as tasks; the columns of targets and groups have names that no feature has."""
        group, target = (
            next(name for name in (word + "_" * number for number in count()) if name not in columns)
            for word in ("group", "target")
        )
        numbers = self.target_type == "regression"
        return table(
            {**columns, target: y, group: np.array([str(each) for each in of_row.tolist()])},
            group=group, target=target, target_type=self.target_type, kinds={target: "number"} if numbers else {},
            split={"ratio": [1, 0, 0]}, on_too_few="shrink", shots=[1, self.shots] if self.shots > 1 else 1,
            queries=self.queries, seed=self.random_state,
        )  # fmt: skip

    def _dealt(self, num_rows: int) -> NDArray[Any]:
        """Groups of random rows, each large enough for a task."""
        groups = max(2, num_rows // (self.shots + self.queries))
        return cast("NDArray[Any]", check_random_state(self.random_state).permutation(num_rows) % groups)

    def _by_group(self, X: Any, groups: ArrayLike | None, method: str = "predict_columns") -> NDArray[Any]:
        """What the estimators of the groups say of their rows."""
        check_is_fitted(self)
        columns = self._columns(X)
        if groups is None:
            return cast("NDArray[Any]", getattr(self._estimator(None), method)(columns))
        of_row = column_or_1d(groups)
        check_consistent_length(X, of_row)
        known, parts, places = set(self._groups.tolist()), [], []
        for group in np.unique(of_row).tolist():
            rows = np.flatnonzero(of_row == group)
            estimator = self._estimator(group if group in known else None)
            parts.append(getattr(estimator, method)(taken(columns, rows)))
            places.append(rows)
        return np.concatenate(parts)[np.argsort(np.concatenate(places), kind="stable")]

    def _estimator(self, group: Any) -> Adapting:
        """The learner adapted to the training rows of a group; None for those of all groups."""
        if group not in self._estimators:
            columns, y = self._rows
            rows = np.arange(len(y)) if group is None else np.flatnonzero(self._groups == group)
            if len(rows) > MOST_ROWS:
                rows = np.sort(check_random_state(self.random_state).choice(rows, MOST_ROWS, replace=False))
            self._estimators[group] = self._adapted(taken(columns, rows), y[rows])
        return self._estimators[group]

    def _adapted(self, columns: Columns, y: NDArray[Any]) -> Adapting:
        return self.adapted(self.trained_).fit_columns(columns, y)


class MetaRegressor(Regressing, Meta):
    """Meta-train a regressor over the groups of rows, such as shops or patients; `adapt` it to a few rows of a new one.

    Args:
        learner, model: sections of a run file, such as "partial_pooling", or {"kind": "maml", "steps": 5} with the
            model "mlp"; docs/run-files.md lists them. `kshot.auto` chooses them.
        steps: number of steps of meta-training; 0 for a learner that is fitted in closed form.
        tasks_per_step, outer_lr: number of tasks of a step, and the learning rate.
        shots: the most rows of a new group that the learner will adapt to, in training and for `score`.
        queries: the most rows of a training task that are predicted.
        random_state: seed of weights and tasks.

    Example:
        >>> random = np.random.default_rng(0)
        >>> shop, X = np.repeat(np.arange(40), 12), random.uniform(0, 10, (480, 1))
        >>> y = 5 + random.normal(2, 1, 40)[shop] * X[:, 0] + random.normal(0, 0.1, 480)
        >>> regressor = MetaRegressor().fit(X, y, groups=shop)
        >>> new = regressor.adapt([[1.0], [4.0], [9.0]], [8.4, 19.1, 36.4])
        >>> new.predict([[2.0], [8.0]]).round()
        array([12., 33.])
    """

    adapted = KShotRegressor
    score = Meta.score  # before that of the mixin

    def _metric(self, y: NDArray[Any], predicted: NDArray[Any], **options: Any) -> float:
        return float(r2_score(y, predicted, **options))


class MetaClassifier(Classifying, Meta):
    """Meta-train a classifier over the groups of rows, such as patients; `adapt` it to a few rows of a new one.

    All groups have the same classes. Where each task has classes of its own, use `kshot.run` with `classes` in place
    of `group`, and open the run by `KShotClassifier`.

    Args:
        learner, model, steps, tasks_per_step, outer_lr, shots, queries, random_state: as of `MetaRegressor`.

    Attributes:
        classes_: the classes, sorted.

    Example:
        >>> random = np.random.default_rng(0)
        >>> patient, X = np.repeat(np.arange(40), 20), random.normal(size=(800, 2))
        >>> limit = random.normal(0, 2, 40)[patient]
        >>> classifier = MetaClassifier().fit(X, np.where(X[:, 0] > limit, "high", "low"), groups=patient)
        >>> new = classifier.adapt([[0.0, 0.0], [3.0, 0.0], [1.0, 1.0]], ["low", "high", "low"])
        >>> new.predict([[-1.0, 0.0], [4.0, 0.0]])
        array(['low', 'high'], dtype='<U4')
    """

    adapted = KShotClassifier
    score = Meta.score

    def predict_proba(self, X: Any, groups: ArrayLike | None = None) -> NDArray[Any]:
        """The probability of each class, (n, classes); `groups` as of `predict`."""
        return self._by_group(X, groups, "predict_proba_columns")

    def _metric(self, y: NDArray[Any], predicted: NDArray[Any], **options: Any) -> float:
        return float(accuracy_score(y, predicted, **options))
