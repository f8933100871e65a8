"""The classes or groups of a split, and the rows of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from kshot.tasks.sampling import Range
from kshot.types import Split

Rows = Sequence[int] | np.ndarray
"""Row numbers of examples, int (k,)."""

OnTooFew = Literal["error", "drop", "shrink"]
"""What becomes of a class or group with too few examples: an error, left out, or used with fewer of them."""


class Pool:
    """The rows of all classes (or groups) of a split end to end: number c has `flat[starts[c] : starts[c] + sizes[c]]`.

    Args:
        members: name to rows.
        where: the source and the kind of member, for errors.

    Raises:
        ValueError: rows that are no vector of integers.
    """

    def __init__(self, members: Mapping[str, Rows], where: str) -> None:
        rows = {name: np.asarray(rows) for name, rows in members.items()}
        for name, own in rows.items():
            if own.ndim != 1 or (own.size and own.dtype.kind not in "iu"):
                raise ValueError(f"{where} {name!r}: the rows must be integers (k,), got {own.dtype} {own.shape}")
        self.names = tuple(rows)
        self.flat = np.concatenate([*rows.values(), []]).astype(np.int64)
        self.sizes = np.array([len(own) for own in rows.values()], np.int64)
        self.starts = self.sizes.cumsum() - self.sizes

    def __len__(self) -> int:
        return len(self.names)

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and rows of each."""
        return zip(self.names, np.split(self.flat, self.starts[1:]))

    def without(self, left_out: np.ndarray) -> Pool:
        """The pool without the members of a mask (len,)."""
        kept = Pool({}, "")
        kept.names = tuple(name for name, out in zip(self.names, left_out.tolist()) if not out)
        kept.flat = self.flat[np.repeat(~left_out, self.sizes)]
        kept.sizes = self.sizes[~left_out]
        kept.starts = kept.sizes.cumsum() - kept.sizes
        return kept

    def member_of(self, places: np.ndarray) -> np.ndarray:
        """The number of the member that each place in `flat` belongs to."""
        return self.starts.searchsorted(places, side="right") - 1


def check_apart(pools: Mapping[Split, Pool], num_rows: int, where: str, kind: str) -> None:
    """No row and no name stands in two splits, no row stands twice, and all rows exist.

    Raises:
        ValueError: one does; `where` is the source and `kind` what its members are, for the sentence.
    """
    owner = np.full(num_rows, -1, np.int8)  # the split each row stands in
    home: dict[str, Split] = {}
    for number, (split, pool) in enumerate(pools.items()):
        if len(pool.flat) and (pool.flat.min() < 0 or pool.flat.max() >= num_rows):
            raise ValueError(
                f"{where}: {split} points at rows {pool.flat.min()} … {pool.flat.max()}, but there are rows "
                f"0 … {num_rows - 1}"
            )
        twice = np.flatnonzero(np.bincount(pool.flat, minlength=num_rows) > 1)
        if len(twice):
            raise ValueError(f"{where}: row {twice[0]} stands twice in {split}; list each once, in one {kind}")
        leaked = np.flatnonzero(owner[pool.flat] >= 0)
        again = [name for name in pool.names if name in home]
        if len(leaked) or again:
            what = f"{kind} {again[0]!r}" if again else f"row {pool.flat[leaked[0]]}"
            raise ValueError(f"{where}: {what} is in {split} and in another split; keep it in one of them")
        owner[pool.flat] = number
        home.update(dict.fromkeys(pool.names, split))


def large_enough(
    pools: Mapping[Split, Pool],
    shots: Range,
    queries: Mapping[Split, Range],
    on_too_few: OnTooFew,
    where: str,
    kind: str,
    gap: int = 0,
) -> tuple[dict[Split, Pool], dict[str, int]]:
    """The pools without the members that are too small for a task, and what was left out: reason to count.

    Raises:
        ValueError: a member that is too small where `small` is "error".
    """
    if on_too_few not in get_args(OnTooFew):
        raise ValueError(f"on_too_few must be one of {', '.join(get_args(OnTooFew))}, got {on_too_few!r}")
    kept, dropped = dict(pools), {}
    for split, pool in pools.items():
        most = queries[split].high
        needed = gap + (shots.low + 1 if on_too_few == "shrink" else shots.high + most)
        short = pool.sizes < needed
        if not short.any():
            continue
        if on_too_few == "error":
            first = int(short.argmax())
            asked = f"{shots.high} shots + {most} queries" + (f" + a gap of {gap}" if gap else "")
            raise ValueError(
                f"{where}: {kind} {pool.names[first]!r} in {split} has {pool.sizes[first]} examples, but {asked} need "
                f"{needed}; lower shots or queries, or say what becomes of any this small "
                f"({short.sum()} in {split}) with on_too_few: drop, or on_too_few: shrink"
            )
        kept[split] = pool.without(short)
        dropped[f"{plural(kind)} in {split} with fewer than {needed} examples"] = int(short.sum())
    return kept, dropped


def plural(kind: str) -> str:
    """The plural of "class", "group" and the like."""
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"
