"""Sizes of tasks, fixed or a range, and sampling without replacement."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from kshot.annotations import Size
from kshot.types import SPLITS, Split

T = TypeVar("T")

BySplit = Mapping[Split, T] | Mapping[str, T]
"""Something for each split, as arguments take it: the names of splits may have been computed."""


def of_splits(given: BySplit[T], where: str) -> dict[Split, T]:
    """What is given for each split; ValueError for a name that is none.

    Example:
        >>> of_splits({"valid": 3}, "classes")
        Traceback (most recent call last):
        ValueError: classes: there is no split 'valid'; the splits are train, val and test
    """
    if unknown := [name for name in given if name not in SPLITS]:
        raise ValueError(f"{where}: there is no split {unknown[0]!r}; the splits are train, val and test")
    return cast("dict[Split, T]", dict(given))


class Range(NamedTuple):
    """A size from `low` to `high`, both included."""

    low: int
    high: int

    @classmethod
    def of(cls, size: Size, name: str, least: int) -> Range:
        """Convert the argument `name`, an int or (low, high) of at least `least`; else ValueError.

        Example:
            >>> Range.of(5, "ways", 2), Range.of([2, 5], "ways", 2)
            (Range(low=5, high=5), Range(low=2, high=5))
        """
        ends: list[Any] = list(size) if isinstance(size, (list, tuple)) else [size, size]
        if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, Integral) for end in ends):
            raise ValueError(f"{name} must be a whole number, or a range of two such as [1, 5]; got {size!r}")
        low, high = map(int, ends)
        if not least <= low <= high:
            raise ValueError(f"{name} must be at least {least}, and a range must not fall; got {size!r}")
        return cls(low, high)

    @property
    def fixed(self) -> bool:
        return self.low == self.high

    def at(self, draws: np.ndarray, most: np.ndarray | None = None) -> np.ndarray:
        """Sizes from draws (...) uniform in [0, 1): uniform from `low` to `high`, or to `most` (...) if smaller."""
        high = self.high if most is None else np.minimum(self.high, most)
        return self.low + (draws * (high - self.low + 1)).astype(np.int64)

    def plain(self) -> int | list[int]:
        """The size as in a run file."""
        return self.low if self.fixed else [self.low, self.high]


MOST_SHOTS = 10
"""Shots by default, where typical groups are large."""


def shots_for(sizes: np.ndarray) -> int:
    """The shots by default for groups of these sizes (G,): 10, or half the median size if that is less.

    Example:
        >>> shots_for(np.array([4, 7, 30])), shots_for(np.array([50, 80]))
        (3, 10)
    """
    return min(MOST_SHOTS, max(int(np.median(sizes)) // 2, 1)) if len(sizes) else MOST_SHOTS


def by_split(size: Size, train: Size | None, name: str, least: int = 1) -> dict[Split, Range]:
    """The size of each split: `size`, except for training where `train` is given."""
    size = Range.of(size, name, least)
    return dict.fromkeys(SPLITS, size) | {"train": size if train is None else Range.of(train, f"train_{name}", least)}


def distinct(draws: np.ndarray, counts: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    r"""Sample k distinct integers below each count; all ordered samples are equally likely.

    Floyd's algorithm, vectorised over rows: for $j = n-k, …, n-1$ take $t \sim U\{0 … j\}$, or $j$ if $t$ was taken
    before; then shuffle. It takes k steps for any counts.

    Args:
        draws: (..., 2, k) uniform in [0, 1): for choosing, then for shuffling.
        counts: (...), each at least k, or its size; broadcasts.
        sizes: (...), sample size of each row, 1 … k; k by default. Later entries of a row repeat its first.

    References:
        Bentley, Floyd: A sample of brilliance, Communications of the ACM 30(9), 1987.
    """
    choice, order = draws[..., 0, :], draws[..., 1, :]
    k = choice.shape[-1]
    wanted = np.array(k) if sizes is None else sizes
    taken = np.empty(choice.shape, np.int64)
    for i in range(k):
        last = counts - wanted + i
        pick = (choice[..., i] * (last + 1)).astype(np.int64)
        repeated = (taken[..., :i] == pick[..., None]).any(-1)
        taken[..., i] = np.where(repeated, last, pick)
    if sizes is None:
        return np.take_along_axis(taken, order.argsort(-1), -1)
    real = np.arange(k) < wanted[..., None]
    taken = np.take_along_axis(taken, np.where(real, order, 1 + order).argsort(-1), -1)
    return np.where(real, taken, taken[..., :1])
