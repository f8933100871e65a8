"""Columns of numbers, categories and dates as numbers, for estimators of one table.

Shape legend: n rows, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer
from sklearn.utils import assert_all_finite

from kshot.integrations.sklearn.rows import Columns

Numbers = NDArray[np.float64]

MOST_LEVELS = 16
"""The most levels of a column that have a feature each."""


class Encoder:
    """Fitted to the columns of a table; a call encodes rows as numbers, float64 (n, F).

    A missing number is the median of its column, and whether it was missing is a feature. Words are one-hot: of the
    levels that occur more than once, the `MOST_LEVELS` most frequent ones; if there are more, the logarithm of how
    often the level occurs is a feature too. A missing word is a level. Dates are numbers. Features that do not vary are
    left out.
    """

    def __init__(self, columns: Columns) -> None:
        self.names = list(columns)
        read = self._read(columns)
        self.numbers = [name for name, values in read.items() if values.dtype.kind == "f"]
        self.levels = {name: Levels.of(values) for name, values in read.items() if name not in self.numbers}
        self.imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
        if self.numbers:
            self.imputer.fit(self._numbers(read))
        x = self._features(read)
        varies = (x != x[0]).any(0)
        varies[-1] |= not varies.any()
        self.kept = np.flatnonzero(varies)

    def __call__(self, columns: Columns) -> Numbers:
        return self._features(self._read(columns))[:, self.kept]

    def _read(self, columns: Columns) -> Columns:
        """The columns by the names that they had when the encoder was fitted."""
        return {name: _read(column) for name, column in zip(self.names, columns.values())}

    def _features(self, read: Columns) -> Numbers:
        parts = [self.imputer.transform(self._numbers(read))] if self.numbers else []
        parts += [levels.encode(_as_words(read[name])) for name, levels in self.levels.items()]
        constant = np.zeros((len(read[self.names[0]]), 1))  # for tables without any other feature
        return np.concatenate([*parts, constant], 1)

    def _numbers(self, read: Columns) -> Numbers:
        for name in self.numbers:
            if read[name].dtype.kind != "f":
                word = max(read[name])
                raise ValueError(f"X has the word {word!r} in column {name!r}, which had numbers when it was fitted")
        numbers = np.stack([read[name] for name in self.numbers], 1)
        assert_all_finite(numbers, allow_nan=True, input_name="X")
        return numbers


class Levels(NamedTuple):
    """The levels of a column of words that have a feature each, and how often each occurs if there are others."""

    names: NDArray[Any]
    counts: dict[str, int]

    @classmethod
    def of(cls, column: NDArray[Any]) -> Levels:
        names, counts = np.unique(column, return_counts=True)
        if len(names) == 2:
            return cls(names[1:], {})
        frequent = [place for place in np.argsort(-counts, kind="stable") if counts[place] > 1]
        more = dict(zip(names.tolist(), counts.tolist())) if len(frequent) > MOST_LEVELS else {}
        return cls(names[frequent[:MOST_LEVELS]], more)

    def encode(self, column: NDArray[Any]) -> Numbers:
        """The features (n, F) of words (n,); those of unknown words are 0."""
        features = np.asarray(column[:, None] == self.names, np.float64)
        if not self.counts:
            return features
        counts = [self.counts.get(word, 0) for word in column.tolist()]
        return np.column_stack([features, np.log1p(counts)])


def words(values: Sequence[Any]) -> NDArray[Any]:
    """Values as words, objects (n,), "" where they are missing."""
    return np.array(["" if _is_missing(value) else str(value) for value in values], object)


def _read(column: NDArray[Any]) -> NDArray[Any]:
    """A column as numbers, NaN where they are missing, or as words."""
    if column.dtype.kind in "biuf":
        return column.astype(np.float64)
    if column.dtype.kind in "mM":
        microseconds = column.astype(f"{column.dtype.kind}8[us]")
        return np.where(np.isnat(column), np.nan, microseconds.astype(np.float64))
    values = [None if _is_missing(value) else value for value in column.tolist()]
    if all(value is None or isinstance(value, Number) for value in values):
        return np.array([np.nan if value is None else float(value) for value in values])
    return words(values)


def _as_words(column: NDArray[Any]) -> NDArray[Any]:
    return column if column.dtype.kind == "O" else words([f"{value:g}" if value == value else None for value in column])


def _is_missing(value: Any) -> bool:
    return type(value).__name__ in ("NoneType", "NAType", "NaTType") or bool(value != value)
