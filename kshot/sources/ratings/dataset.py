"""The dataset of ratings: items, ratings, and features of items and users, as compact columns.

Shape legend: n ratings, U users, I items, L levels, F features; T tasks, N items without a click.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.data.tables.columns import Columns, Raw, Values, place_of, read_columns
from kshot.data.tables.frames import TableLike
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Reading, Table
from kshot.data.text.files import words_of
from kshot.sources.ratings.factors import ItemFactors
from kshot.sources.ratings.preprocessor import ItemMean
from kshot.types import Tree


class RatingDataset:
    """Ratings as columns: (inputs, targets), with features of users and items expanded when they are taken.

    `items` (n,) are int32 numbers, `targets` (n,) float32 standardised, or int8 numbers of `levels`, 0 for none.
    """

    def __init__(
        self,
        items: np.ndarray,
        targets: np.ndarray,
        levels: int,
        of_items: FittedFeatures | None,
        of_users: UserFeatures,
        item_mean: ItemMean | None = None,
        item_factors: ItemFactors | None = None,
    ) -> None:
        self.items, self.targets, self.item_mean, self.item_factors = items, targets, item_mean, item_factors
        self.of_items, self.of_users = of_items, of_users
        self.one_hot = np.eye(levels, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: np.ndarray) -> tuple[Tree, Tensor]:
        targets = self.targets[rows]
        targets = self.one_hot[targets] if len(self.one_hot) else targets[..., None]
        return self._inputs(self.items[rows].astype(np.int64), rows), torch.from_numpy(targets)

    def unclicked(self, items: np.ndarray, rows: np.ndarray) -> Tree:
        """Inputs for items (T, N), numbered from 1, and the users of ratings (T,)."""
        return self._inputs(items, rows[:, None].repeat(items.shape[1], 1), rated=False)

    def _inputs(self, items: np.ndarray, rows: np.ndarray, *, rated: bool = True) -> Tree:
        """Inputs for item numbers (...) and the users of ratings (...), which are ratings of these items or not."""
        inputs = {"item": torch.from_numpy(items)}
        if self.of_items is not None:
            row_of_item = self.of_items.rows_of[rows] if rated else self.of_items.of_known[items - 1]
            inputs["item_features"] = torch.from_numpy(self.of_items.features(row_of_item))
        if self.item_mean is not None:
            inputs["item_mean"] = torch.from_numpy(self.item_mean.features(items, rows if rated else None))
        if self.item_factors is not None:
            inputs["item_factors"] = torch.from_numpy(self.item_factors.features(items, rows))
        return inputs | self.of_users.take(rows)


class UserFeatures(NamedTuple):
    """Features of users: their columns, and their signup times (U, 10); the ratings of user u end at `ends[u]`."""

    ends: np.ndarray
    fitted: FittedFeatures | None
    signup_time: np.ndarray | None

    def take(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The input `user_features` (..., F) of ratings (...), if there are any."""
        features = [] if self.fitted is None else [self.fitted.features(self.fitted.rows_of[rows])]
        if self.signup_time is not None:
            features.append(self.signup_time[self.ends.searchsorted(rows, side="right")])
        return {"user_features": torch.from_numpy(np.concatenate(features, -1))} if features else {}


class FittedFeatures(NamedTuple):
    """A table of features of users or items, fitted, with its row for each rating (n,) and each training member."""

    columns: Columns
    values: Values
    rows_of: np.ndarray
    of_known: np.ndarray

    def features(self, rows: np.ndarray) -> np.ndarray:
        """float32 (..., F) of rows (...)."""
        return self.columns.spread(self.values.rows(rows))


class Features(NamedTuple):
    """A table of features of users or items, as read."""

    raw: dict[str, Raw]
    names: Any  # polars Series of words
    titles: Any  # the same, or None

    @classmethod
    def read(cls, table: Table, key: str, kinds: Mapping[str, str], rated: Table, title: str | None) -> Features:
        """Read a table of features; ratings of users or items without a row in it are bad rows."""
        table.need(key, *([title] if title else []))
        names = words_of(table, key, "a row needs one")
        columns = [name for name in table.frame.columns if name not in (key, title)]
        raw = read_columns(table, {name: kinds.get(name) or table.kind(name) for name in columns})
        table.bad(key, (names.is_duplicated() & names.is_not_null()).to_numpy(), "has more than one row")
        table.settle()
        words = rated.labels(key)
        rated.bad(key, (~words.is_in(names.implode()) & words.is_not_null()).to_numpy(), f"has no row in {table.path}")
        return cls(raw, names, table.labels(title) if title else None)

    def fit(self, members: Sequence[str], train: np.ndarray, member_of: np.ndarray) -> FittedFeatures:
        """Fit to the training members (their numbers); `member_of` (n,) is the member of each rating."""
        row = self._rows(members)
        mask = np.zeros(len(self.names), bool)
        mask[row[train]] = True
        columns = Columns.fit(self.raw, mask)
        return FittedFeatures(columns, columns.encode(self.raw), row[member_of], row[train])

    def titled(self, members: Sequence[str], numbers: np.ndarray) -> tuple[str, ...]:
        """The titles of members, or their names if they have none."""
        titles = self.titles.fill_null(self.names).gather(self._rows(members)[numbers])
        return tuple(titles.to_list())

    def _rows(self, members: Sequence[str]) -> np.ndarray:
        """The row of each member in the table of features."""
        import polars as pl

        return place_of(pl.Series(members, dtype=pl.String), self.names.to_list())


def opened(path: Path | str | Table | TableLike, reading: Reading, columns: list[str] | None = None) -> Table:
    """Open a table, unless it is open already."""
    if not isinstance(path, Table):
        return open_table(path, reading, columns=columns)
    path.need(*(columns or ()))
    return path
