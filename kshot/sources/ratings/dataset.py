"""The rows behind tasks of ratings: items, ratings, and what is known of items and users, as compact columns.

Shape legend: n ratings, U users, I items, L levels, F features; T tasks, N items not clicked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.data.tables.columns import Columns, Raw, Values, place_of, read_columns
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Reading, Table
from kshot.sources.ratings.preprocessor import ItemMean
from kshot.types import Tree


class RatingDataset:
    """Ratings as columns: (inputs, targets), the features of users and items spread out where they are taken.

    Args:
        items: int32 (n,), numbers of items.
        targets: float32 (n,) standardised, or int8 (n,) numbers of levels.
        levels: how many there are; 0 for none.
        of_items: their features.
        of_users: those of the users.
        item_mean: of the items, if inputs are to tell it.
    """

    def __init__(
        self,
        items: np.ndarray,
        targets: np.ndarray,
        levels: int,
        of_items: FittedFeatures | None,
        of_users: UserFeatures,
        item_mean: ItemMean | None = None,
    ) -> None:
        self.items, self.targets, self.item_mean = items, targets, item_mean
        self.of_items, self.of_users = of_items, of_users
        self.one_hot = np.eye(levels, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: np.ndarray) -> tuple[Tree, Tensor]:
        inputs = {"item": torch.from_numpy(self.items[rows].astype(np.int64))}
        if self.of_items is not None:
            inputs["item_features"] = torch.from_numpy(self.of_items.features(self.of_items.places[rows]))
        if self.item_mean is not None:
            inputs["item_mean"] = torch.from_numpy(self.item_mean.without(self.items[rows], rows))
        targets = self.targets[rows]
        given = self.of_users.take(rows)
        return inputs | given, torch.from_numpy(self.one_hot[targets] if len(self.one_hot) else targets[..., None])

    def unclicked(self, items: np.ndarray, rows: np.ndarray) -> Tree:
        """Inputs for items (T, N), numbers from 1, and the users of ratings (T,)."""
        inputs = {"item": torch.from_numpy(items)}
        if self.of_items is not None:
            inputs["item_features"] = torch.from_numpy(self.of_items.features(self.of_items.of_known[items - 1]))
        if self.item_mean is not None:
            inputs["item_mean"] = torch.from_numpy(self.item_mean.without(items))
        return inputs | self.of_users.take(rows[:, None].repeat(items.shape[1], 1))


class UserFeatures(NamedTuple):
    """What is known of users: where the ratings of each (U,) end, their columns, and when they came (U, 10)."""

    ends: np.ndarray
    fitted: FittedFeatures | None
    signup_time: np.ndarray | None

    def take(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The input `user_features` (..., F) of ratings (...), if there are any features."""
        found = [] if self.fitted is None else [self.fitted.features(self.fitted.places[rows])]
        if self.signup_time is not None:
            found.append(self.signup_time[self.ends.searchsorted(rows, side="right")])
        return {"user_features": torch.from_numpy(np.concatenate(found, -1))} if found else {}


class FittedFeatures(NamedTuple):
    """The features of users or items: the columns, a row each, and the row that belongs to each rating.

    `of_known` are the rows of the members of training, in order.
    """

    columns: Columns
    values: Values
    places: np.ndarray
    of_known: np.ndarray

    def features(self, places: np.ndarray) -> np.ndarray:
        """float32 (..., F) of rows (...)."""
        return self.columns.spread(self.values.rows(places))


class Features(NamedTuple):
    """A table of users or items, as read."""

    raw: dict[str, Raw]
    names: Any  # polars Series of words
    titles: Any  # the same, or None

    @classmethod
    def open(
        cls,
        path: Path | str | Table,
        reading: Reading,
        key: str,
        kinds: Mapping[str, str],
        rated: Table,
        title: str | None,
    ) -> Features:
        """Read a table of features; ratings of what it lacks are bad rows."""
        found = opened(path, reading)
        found.need(key, *([title] if title else []))
        names = found.labels(key)
        found.missing(key, names.is_null().to_numpy(), "a row needs one")
        chosen = [name for name in found.frame.columns if name not in (key, title)]
        raw = read_columns(found, {name: kinds.get(name) or found.kind(name) for name in chosen})
        found.bad(key, (names.is_duplicated() & names.is_not_null()).to_numpy(), "has more than one row")
        found.settle()
        words = rated.labels(key)
        rated.bad(key, (~words.is_in(names.implode()) & words.is_not_null()).to_numpy(), f"has no row in {found.path}")
        return cls(raw, names, found.labels(title) if title else None)

    def fit(self, members: Sequence[str], train: np.ndarray, places: np.ndarray) -> FittedFeatures:
        """Fit to the members of training, places among `members`; `places` (n,) is the member of each rating."""
        row = self._rows(members)
        mask = np.zeros(len(self.names), bool)
        mask[row[train]] = True
        columns = Columns.fit(self.raw, mask)
        return FittedFeatures(columns, columns.encode(self.raw), row[places], row[train])

    def titled(self, members: Sequence[str], chosen: np.ndarray) -> tuple[str, ...]:
        """What a person calls the members at places; their names where there is nothing."""
        titles = self.titles.fill_null(self.names).gather(self._rows(members)[chosen])
        return tuple(titles.to_list())

    def _rows(self, members: Sequence[str]) -> np.ndarray:
        """The row of each member in the table."""
        import polars as pl

        return place_of(pl.Series(members, dtype=pl.String), self.names.to_list())


def opened(path: Path | str | Table, reading: Reading, columns: list[str] | None = None) -> Table:
    """A table that was opened, or is to be."""
    if not isinstance(path, Table):
        return open_table(path, reading, columns=columns)
    path.need(*(columns or ()))
    return path
