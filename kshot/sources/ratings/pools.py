"""The ratings from which the supports and queries of a split are taken.

Shape legend: n ratings, U users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kshot.types import SPLITS, Split


class Side(NamedTuple):
    """Ratings by user: user u has `rows[bounds[u] : bounds[u + 1]]`, ordered by time."""

    rows: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, user_of: np.ndarray, num_users: int) -> Side:
        rows = np.flatnonzero(mask)
        return cls(rows, np.concatenate([[0], np.bincount(user_of[rows], minlength=num_users).cumsum()]))

    def of_rows(self, mask: np.ndarray) -> Side:
        """The ratings that a mask (n,) has too."""
        kept = mask[self.rows]
        return Side(self.rows[kept], np.concatenate([[0], kept.cumsum()])[self.bounds])

    @property
    def sizes(self) -> np.ndarray:
        """The number of ratings of each user (U,)."""
        return np.diff(self.bounds)


class Sides(NamedTuple):
    """The ratings of supports and of queries: the same, or two sets that share none."""

    support: Side
    query: Side

    @property
    def same(self) -> bool:
        return self.support is self.query

    def of_rows(self, mask: np.ndarray) -> Sides:
        """The ratings that a mask (n,) has too."""
        support = self.support.of_rows(mask)
        return Sides(support, support if self.same else self.query.of_rows(mask))

    def queries_after(self, users: np.ndarray, shots: np.ndarray) -> np.ndarray:
        """The position of the first query rating of each user (T,) after their first `shots` (T,) support ratings."""
        if self.same:
            return shots
        last = self.support.rows[self.support.bounds[users] + shots - 1]
        return self.query.rows.searchsorted(last) - self.query.bounds[users]

    def support_before(self, positions: np.ndarray, users: np.ndarray) -> np.ndarray:
        """The number of support ratings of each user (T,) before the query rating at a position in `query.rows`."""
        if self.same:
            return positions - self.query.bounds[users]
        return self.support.rows.searchsorted(self.query.rows[positions]) - self.support.bounds[users]


def pools_of(
    sizes: np.ndarray,
    user_of: np.ndarray,
    item_of: np.ndarray,
    *,
    users: Mapping[Split, np.ndarray] | None,
    items: Mapping[Split, np.ndarray] | None,
    ratio: Sequence[float] | None,
    ordered: bool,
) -> dict[Split, Sides]:
    """The ratings of supports and queries of each split.

    Args:
        sizes: (U,), number of ratings of each user.
        user_of, item_of: (n,), user and item of each rating, ordered by user, and by time if `ordered`.
        users, items: for each split a mask of its users and items; None if they are not split.
        ratio: shares of each user's ratings in train, val and test, if these are split.
    """
    count = len(sizes)
    pools: dict[Split, Sides] = {}
    if ratio is not None:
        starts = sizes.cumsum() - sizes
        rank = np.arange(len(user_of)) - starts[user_of]
        if not ordered:
            shuffled = np.random.default_rng(0).random(len(user_of))
            rank = np.lexsort((shuffled, user_of)).argsort() - starts[user_of]
        quantile = (rank + 0.5) / sizes[user_of]
        part = (quantile >= ratio[0]).astype(np.int8) + (quantile >= ratio[0] + ratio[1])
        for number, split in enumerate(SPLITS):
            if ratio[number]:
                query = Side.of(part == number, user_of, count)
                pools[split] = Sides(query if number == 0 else Side.of(part < number, user_of, count), query)
        return pools
    for split in users or items or {}:
        mask = np.ones(len(user_of), bool) if users is None else users[split][user_of]
        if items is not None and split not in items:
            continue
        support = query = Side.of(mask if items is None else mask & items["train"][item_of], user_of, count)
        if items is not None and split != "train":
            query = Side.of(mask & items[split][item_of], user_of, count)
        pools[split] = Sides(support, query)
    return pools
