"""What the estimators share: the checks of X and y, X as columns, and y as targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_consistent_length, validate_data

from kshot.data.tables.frames import of_memory

Columns = dict[str, NDArray[Any]]
"""The columns of X by name."""


class Rows(BaseEstimator, ABC):
    """An estimator for rows of a table.

    Attributes:
        least: least number of rows to be fitted to.
    """

    least: ClassVar[int] = 1

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    @abstractmethod
    def _encoded(self, y: NDArray[Any]) -> NDArray[Any]:
        """Targets as a column of a table; sets `classes_` if they are classes."""

    def _columns(self, X: Any, *, reset: bool = False) -> Columns:
        """The columns of X: those of a DataFrame as they are, those of an array as numbers."""
        if hasattr(X, "columns") and hasattr(X, "shape") and len(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            frame = of_memory(X).frame
            return {str(name): column.to_numpy() for name, column in zip(X.columns, frame.get_columns())}
        least = self.least if reset else 1
        X = validate_data(self, X, reset=reset, ensure_all_finite="allow-nan", ensure_min_samples=least)
        return {f"x{number}": column.astype(np.float64) for number, column in enumerate(X.T)}

    def _checked(self, X: Any, y: Any, *, reset: bool) -> tuple[Columns, NDArray[Any]]:
        """The columns of X, and y as one column."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        columns = self._columns(X, reset=reset)
        y = column_or_1d(y, warn=True)
        if y.dtype.kind == "f":
            assert_all_finite(y, input_name="y")
        check_consistent_length(X, y)
        return columns, y


class Regressing(RegressorMixin):
    """Targets that are numbers."""

    target_type: Literal["regression", "classification"] = "regression"

    def _encoded(self, y: NDArray[Any]) -> NDArray[Any]:
        return cast("NDArray[Any]", check_array(y, ensure_2d=False, dtype=np.float64))


class Classifying(ClassifierMixin):
    """Targets that are classes, whose sorted names are `classes_`."""

    target_type: Literal["regression", "classification"] = "classification"
    classes_: NDArray[Any]

    def _encoded(self, y: NDArray[Any]) -> NDArray[Any]:
        """Numbers of classes as words, which are in the order of the classes."""
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_[0]!r}; a classifier needs at least two classes")
        return np.array([f"{number:06d}" for number in numbers])


def taken(columns: Columns, rows: NDArray[Any]) -> Columns:
    """Some rows of the columns."""
    return {name: column[rows] for name, column in columns.items()}
