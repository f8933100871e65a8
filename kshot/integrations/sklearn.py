"""Estimators of scikit-learn: meta-train over groups of rows, and adapt to a new group.

`MetaRegressor` and `MetaClassifier` are fitted to the rows of many groups. Their method `adapt` takes a few rows of a
new group and returns an ordinary fitted estimator, a `KShotRegressor` or `KShotClassifier`, which open run folders too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import _safe_indexing, assert_all_finite, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, validate_data

from kshot.app.build import Shapes, build_learner, build_model, has_head, shapes_of
from kshot.app.in_memory import as_text
from kshot.app.spec import Spec, parse_spec
from kshot.app.suitability import refuse_unsuited
from kshot.app.trained import load
from kshot.data.tables.frames import of_memory
from kshot.learner import Learner
from kshot.sources.preprocessors import preprocessor_from_json
from kshot.sources.table import TablePreprocessor, table
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.source import TaskSource
from kshot.training.closed_form import fit_closed_form
from kshot.training.fit import fit
from kshot.types import Batch, Tree

MOST_ROWS = 1000
"""The most training rows that `predict` adapts to where no group is given."""

TargetType = Literal["regression", "classification"]


@dataclass(frozen=True)
class Trained:
    """A meta-trained learner for rows of a table, which is never changed. Pickles hold text and safetensors.

    Attributes:
        spec, shapes: the run file that it is of, and the shapes of one example.
        preprocessor: converts rows into inputs, and predictions into targets.
        classes: the classes that all tasks share, as the user gave them; empty where each task has its own.
    """

    spec: Spec
    shapes: Shapes
    preprocessor: TablePreprocessor
    learner: Learner
    classes: tuple[Any, ...] = ()

    @classmethod
    def open(cls, folder: str | Path) -> Trained:
        """The learner of a run folder; ValueError if it is not for a table with one target."""
        run = load(folder)
        encoding = _of_table(run.preprocessor, f"the run {folder}")
        return cls(run.spec, run.shapes, encoding, run.learner.eval(), encoding.classes)

    @property
    def target(self) -> str:
        """The column of the target, or of the class."""
        return self.preprocessor.label or self.preprocessor.targets[0]

    @property
    def names(self) -> list[str]:
        """The columns of the inputs."""
        return list(self.preprocessor.columns.kinds)

    def adapt(self, columns: Mapping[str, Any], ways: int | None) -> Tree:
        """The state for rows with their targets; `ways` is the number of classes where a task has its own."""
        inputs, targets, _ = self.preprocessor.support(columns)
        if isinstance(targets, list):
            targets = torch.eye(ways or 0)[[int(each) for each in targets]]
        with torch.no_grad():
            return self.learner.adapt(Batch.of(inputs, targets))

    def predict(self, state: Tree, columns: Mapping[str, Any]) -> Any:
        """The learner's prediction (n, ...) for rows."""
        with torch.no_grad():
            return self.learner.predict(state, self.preprocessor.inputs(columns, {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> Trained:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        weights = save_tensors({name: value.contiguous() for name, value in self.learner.state_dict().items()})
        text = json.dumps([self.spec.to_yaml(), self.shapes, self.preprocessor.to_json()])
        return _unpickled, (text, weights, self.classes)


def _unpickled(text: str, weights: bytes, classes: tuple[Any, ...]) -> Trained:
    spec, shapes, encoding = json.loads(text)
    spec = parse_spec(spec, "the estimator")
    learner = build_learner(spec, build_model(spec, shapes, head=has_head(spec)), shapes)
    learner.load_state_dict(load_tensors(weights))
    return Trained(spec, shapes, _of_table(preprocessor_from_json(encoding), "the estimator"), learner.eval(), classes)


def _of_table(preprocessor: Preprocessor | None, what: str) -> TablePreprocessor:
    if not isinstance(preprocessor, TablePreprocessor) or len(preprocessor.targets) > 1:
        raise ValueError(f"{what} is not for a table with one target: open it by kshot.load")
    return preprocessor


class _Rows(BaseEstimator):
    """What the estimators share: the checks of X and y, and X as columns.

    Attributes:
        least: least number of rows to be fitted to.
    """

    least: ClassVar[int] = 1

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _columns(self, X: Any, *, reset: bool = False) -> dict[str, NDArray[Any]]:
        """The columns of X by name: those of a DataFrame as they are, those of an array as numbers."""
        if hasattr(X, "columns") and hasattr(X, "shape") and len(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            frame = of_memory(X).frame
            return {str(name): column.to_numpy() for name, column in zip(X.columns, frame.get_columns())}
        least = self.least if reset else 1
        X = validate_data(self, X, reset=reset, ensure_all_finite="allow-nan", ensure_min_samples=least)
        return {f"x{number}": column.astype(np.float64) for number, column in enumerate(X.T)}

    def _checked(self, X: Any, y: Any, *, reset: bool) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
        """The columns of X, and y as one column."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        columns = self._columns(X, reset=reset)
        y = column_or_1d(y, warn=True)
        if y.dtype.kind == "f":
            assert_all_finite(y, input_name="y")
        check_consistent_length(X, y)
        return columns, y


class _Regressing(RegressorMixin):
    """Targets that are numbers."""

    target_type: TargetType = "regression"

    def _encoded(self, y: NDArray[Any]) -> NDArray[Any]:
        return cast("NDArray[Any]", check_array(y, ensure_2d=False, dtype=np.float64))


class _Classifying(ClassifierMixin):
    """Targets that are classes, whose sorted names are `classes_`."""

    target_type: TargetType = "classification"
    classes_: NDArray[Any]

    def _encoded(self, y: NDArray[Any]) -> NDArray[Any]:
        """Numbers of classes as words, which are in the order of the classes."""
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_[0]!r}; a classifier needs at least two classes")
        return np.array([f"{number:06d}" for number in numbers])


class _Adapting(_Rows):
    """An estimator that adapts a meta-trained learner to the rows that it is fitted to."""

    def __init__(self, run: Any) -> None:
        self.run = run

    @classmethod
    def from_run(cls, folder: str | Path) -> Self:
        """The estimator of a run folder, whose `fit` adapts to a new group.

        Raises:
            ValueError: the folder is no run folder, or not of a table with one target.
        """
        return cls(Trained.open(folder))

    def fit(self, X: Any, y: Any) -> Self:
        """Adapt to a support set; what was given before is left out of account."""
        self.trained_ = self.run if isinstance(self.run, Trained) else Trained.open(self.run)
        columns, given = self._checked(X, y, reset=True)
        self._support = self._renamed(columns) | {self.trained_.target: given}
        return self._adapt()

    def partial_fit(self, X: Any, y: Any) -> Self:
        """Add rows to the support set, and adapt to all of it."""
        if not hasattr(self, "trained_"):
            return self.fit(X, y)
        columns, given = self._checked(X, y, reset=False)
        more = self._renamed(columns) | {self.trained_.target: given}
        self._support = {name: np.concatenate([column, more[name]]) for name, column in self._support.items()}
        return self._adapt()

    def predict(self, X: Any) -> NDArray[Any]:
        """The prediction for each row, (n,)."""
        raise NotImplementedError

    def _encoded(self, y: NDArray[Any]) -> NDArray[Any]:
        raise NotImplementedError

    def _adapt(self) -> Self:
        target = self.trained_.target
        encoded = self._support | {target: self._encoded(self._support[target])}
        self._state = self.trained_.adapt(encoded, len(getattr(self, "classes_", ())))
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_state"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "_support"):
            self._adapt()

    def _predicted(self, X: Any) -> Any:
        check_is_fitted(self)
        return self.trained_.predict(self._state, self._renamed(self._columns(X)))

    def _renamed(self, columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The columns of the training: by name where X has the names, else in order."""
        names = self.trained_.names
        if set(names) <= set(columns):
            return {name: columns[name] for name in names}
        if len(columns) != len(names):
            raise ValueError(
                f"X has {len(columns)} columns, and the learner was trained on {len(names)}: {', '.join(names)}"
            )
        return dict(zip(names, columns.values()))


class KShotRegressor(_Regressing, _Adapting):
    """A regressor of one group: a meta-trained learner that has adapted to a few rows of it.

    Args:
        run: a run folder of `kshot run` or `kshot auto` whose source is a table with a numeric target.

    Example:
        >>> regressor = KShotRegressor("runs/shops").fit(few_rows, their_sales)  # doctest: +SKIP
        >>> regressor.predict(next_week)  # doctest: +SKIP
    """

    def predict(self, X: Any) -> NDArray[Any]:
        """The predicted target of each row, (n,)."""
        prediction = self._predicted(X)
        return np.array(self.trained_.preprocessor.answers(prediction, {})[self.trained_.target])


class KShotClassifier(_Classifying, _Adapting):
    """A classifier of one group or task: a meta-trained learner that has adapted to a few rows of it.

    Args:
        run: a run folder of `kshot run` or `kshot auto` whose source is a table with classes.

    Attributes:
        classes_: the classes, sorted: those of the training, or of the support set where each task has its own.

    Example:
        >>> classifier = KShotClassifier("runs/species").fit(few_rows, their_species)  # doctest: +SKIP
        >>> classifier.predict_proba(new_rows)  # doctest: +SKIP
    """

    def predict(self, X: Any) -> NDArray[Any]:
        """The most likely class of each row, (n,)."""
        return self.classes_[self.predict_proba(X).argmax(1)]

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """The probability of each class, (n, classes)."""
        prediction = self._predicted(X)[:, : len(self.classes_)]
        return cast("NDArray[Any]", prediction.double().softmax(1).numpy())

    def _encoded(self, y: NDArray[Any]) -> NDArray[Any]:
        trained = self.trained_
        if not trained.classes:
            return super()._encoded(y)
        check_classification_targets(y)
        words = dict(zip(trained.classes, trained.preprocessor.classes))
        if unknown := [each for each in np.unique(y).tolist() if each not in words]:
            known = ", ".join(map(str, trained.classes))
            raise ValueError(f"y has the class {unknown[0]!r}, and the learner was trained on {known}")
        self.classes_ = np.array(trained.classes)
        return np.array([words[each] for each in y.tolist()])


class _Meta(_Rows):
    """An estimator that is meta-trained over groups."""

    adapted: ClassVar[type[Any]]
    target_type: TargetType
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
        encoding = _of_table(source.preprocessor, "the estimator")
        classes = tuple(getattr(self, "classes_", np.array(())).tolist())
        self.trained_ = Trained(spec, shapes, encoding, learner.eval(), classes)
        self._rows, self._groups = (X if hasattr(X, "columns") else np.column_stack([*columns.values()]), y), of_row
        self._estimators: dict[Any, Any] = {}
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
        return self._by_group("predict", X, groups)

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
        of_row, random = column_or_1d(groups), check_random_state(self.random_state)
        tested, predicted = [], []
        for group in np.unique(of_row):
            rows = random.permutation(np.flatnonzero(of_row == group))
            support, query = rows[: min(self.shots, len(rows) - 1)], rows[self.shots :]
            if not len(support) or not len(query):
                continue
            estimator = self.adapt(_safe_indexing(X, support), y[support])
            tested.append(query)
            predicted.append(estimator.predict(_safe_indexing(X, query)))
        if not tested:
            raise ValueError(f"no group has more than shots={self.shots} rows, so that none could be scored")
        scored = np.concatenate(tested)
        weight = None if sample_weight is None else np.asarray(sample_weight)[scored]
        return float(self._metric(y[scored], np.concatenate(predicted), sample_weight=weight))

    def _encoded(self, y: NDArray[Any]) -> NDArray[Any]:
        raise NotImplementedError

    def _metric(self, y: NDArray[Any], predicted: NDArray[Any], **options: Any) -> float:
        raise NotImplementedError

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

    def _by_group(self, method: str, X: Any, groups: ArrayLike | None) -> NDArray[Any]:
        """What the estimators of the groups say of their rows."""
        check_is_fitted(self)
        if groups is None:
            return cast("NDArray[Any]", getattr(self._estimator(None), method)(X))
        self._columns(X)
        of_row = column_or_1d(groups)
        check_consistent_length(X, of_row)
        known, parts, places = set(self._groups.tolist()), [], []
        for group in np.unique(of_row).tolist():
            rows = np.flatnonzero(of_row == group)
            estimator = self._estimator(group if group in known else None)
            parts.append(getattr(estimator, method)(_safe_indexing(X, rows)))
            places.append(rows)
        return np.concatenate(parts)[np.argsort(np.concatenate(places), kind="stable")]

    def _estimator(self, group: Any) -> Any:
        """The learner adapted to the training rows of a group; None for those of all groups."""
        if group not in self._estimators:
            X, y = self._rows
            rows = np.arange(len(y)) if group is None else np.flatnonzero(self._groups == group)
            if len(rows) > MOST_ROWS:
                rows = np.sort(check_random_state(self.random_state).choice(rows, MOST_ROWS, replace=False))
            self._estimators[group] = self.adapt(_safe_indexing(X, rows), y[rows])
        return self._estimators[group]


class MetaRegressor(_Regressing, _Meta):
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
    score = _Meta.score  # before that of the mixin

    def _metric(self, y: NDArray[Any], predicted: NDArray[Any], **options: Any) -> float:
        return float(r2_score(y, predicted, **options))


class MetaClassifier(_Classifying, _Meta):
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
    score = _Meta.score

    def predict_proba(self, X: Any, groups: ArrayLike | None = None) -> NDArray[Any]:
        """The probability of each class, (n, classes); `groups` as of `predict`."""
        return self._by_group("predict_proba", X, groups)

    def _metric(self, y: NDArray[Any], predicted: NDArray[Any], **options: Any) -> float:
        return float(accuracy_score(y, predicted, **options))
