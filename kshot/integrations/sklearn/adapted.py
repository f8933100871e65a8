"""Estimators of one group: a meta-trained learner that adapts to the rows that it is fitted to."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from kshot.integrations.sklearn.rows import Classifying, Columns, Regressing, Rows
from kshot.integrations.sklearn.trained import Trained


class Adapting(Rows):
    """An estimator that adapts a meta-trained learner to the rows that it is fitted to."""

    trained_: Trained
    _support: Columns

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
        return self.fit_columns(*self._checked(X, y, reset=True))

    def partial_fit(self, X: Any, y: Any) -> Self:
        """Add rows to the support set, and adapt to all of it."""
        if not hasattr(self, "trained_"):
            return self.fit(X, y)
        columns, given = self._checked(X, y, reset=False)
        more = self._renamed(columns) | {self.trained_.target: given}
        self._support = {name: np.concatenate([column, more[name]]) for name, column in self._support.items()}
        return self._adapt()

    def fit_columns(self, columns: Columns, y: NDArray[Any]) -> Self:
        """As `fit`, for what was checked before."""
        self.trained_ = self.run if isinstance(self.run, Trained) else Trained.open(self.run)
        self._support = self._renamed(columns) | {self.trained_.target: y}
        return self._adapt()

    def predict(self, X: Any) -> NDArray[Any]:
        """The prediction for each row, (n,)."""
        check_is_fitted(self)
        return self.predict_columns(self._columns(X))

    @abstractmethod
    def predict_columns(self, columns: Columns) -> NDArray[Any]:
        """As `predict`, for what was checked before."""

    def _adapt(self) -> Self:
        target = self.trained_.target
        encoded = self._support | {target: self._encoded(self._support[target])}
        self._state = self.trained_.adapt(encoded, len(getattr(self, "classes_", ())))
        return self

    def _predicted(self, columns: Columns) -> Any:
        return self.trained_.predict(self._state, self._renamed(columns))

    def _renamed(self, columns: Columns) -> Columns:
        """The columns of the training: by name where they have the names, else in order."""
        names = self.trained_.names
        if set(names) <= set(columns):
            return {name: columns[name] for name in names}
        if len(columns) != len(names):
            raise ValueError(
                f"X has {len(columns)} columns, and the learner was trained on {len(names)}: {', '.join(names)}"
            )
        return dict(zip(names, columns.values()))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_state"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "_support"):
            self._adapt()


class KShotRegressor(Regressing, Adapting):
    """A regressor of one group: a meta-trained learner that has adapted to a few rows of it.

    Args:
        run: a run folder of `kshot run` or `kshot auto` whose source is a table with a numeric target.

    Example:
        >>> regressor = KShotRegressor("runs/shops").fit(few_rows, their_sales)  # doctest: +SKIP
        >>> regressor.predict(next_week)  # doctest: +SKIP
    """

    def predict_columns(self, columns: Columns) -> NDArray[Any]:
        answers = self.trained_.preprocessor.answers(self._predicted(columns), {})
        return np.array(answers[self.trained_.target])


class KShotClassifier(Classifying, Adapting):
    """A classifier of one group or task: a meta-trained learner that has adapted to a few rows of it.

    Args:
        run: a run folder of `kshot run` or `kshot auto` whose source is a table with classes.

    Attributes:
        classes_: the classes, sorted: those of the training, or of the support set where each task has its own.

    Example:
        >>> classifier = KShotClassifier("runs/species").fit(few_rows, their_species)  # doctest: +SKIP
        >>> classifier.predict_proba(new_rows)  # doctest: +SKIP
    """

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """The probability of each class, (n, classes)."""
        check_is_fitted(self)
        return self.predict_proba_columns(self._columns(X))

    def predict_columns(self, columns: Columns) -> NDArray[Any]:
        return self.classes_[self.predict_proba_columns(columns).argmax(1)]

    def predict_proba_columns(self, columns: Columns) -> NDArray[Any]:
        """As `predict_proba`, for what was checked before."""
        prediction = self._predicted(columns)[:, : len(self.classes_)]
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
