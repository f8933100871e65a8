"""The classes or groups of a split with the rows of their examples, and the base of sources that draw from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Literal, Self

import numpy as np
import torch

from kshot.annotations import Size
from kshot.data.dataset import Dataset
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.sampling import BySplit, Range, by_split, of_splits
from kshot.tasks.source import StackedSource, if_any
from kshot.types import SPLITS, Split, Tree

Rows = Sequence[int] | np.ndarray
"""Row numbers of examples, int (k,)."""

OnTooFew = Literal["error", "drop", "shrink"]
"""Treatment of a class or group with too few examples: raise an error, leave it out, or use it with fewer examples."""


class Pool:
    """The rows of all classes or groups of a split: member c has `flat[starts[c] : starts[c] + sizes[c]]`."""

    def __init__(self, names: tuple[str, ...], flat: np.ndarray, sizes: np.ndarray) -> None:
        self.names, self.flat, self.sizes = names, flat, sizes
        self.starts = sizes.cumsum() - sizes

    @classmethod
    def of(cls, members: Mapping[str, Rows], where: str) -> Pool:
        """The pool of names and rows; `where` is the source and kind of member, for messages."""
        arrays = {name: np.asarray(rows) for name, rows in members.items()}
        for name, rows in arrays.items():
            if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
                raise ValueError(f"{where} {name!r}: the rows must be integers (k,), got {rows.dtype} {rows.shape}")
        sizes = np.array([len(rows) for rows in arrays.values()], np.int64)
        return cls(tuple(arrays), np.concatenate([*arrays.values(), []]).astype(np.int64), sizes)

    def __len__(self) -> int:
        return len(self.names)

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and rows of each member."""
        return zip(self.names, np.split(self.flat, self.starts[1:]))

    def without(self, mask: np.ndarray) -> Pool:
        """The pool without the members of a mask (len,)."""
        names = tuple(name for name, left_out in zip(self.names, mask.tolist()) if not left_out)
        return Pool(names, self.flat[np.repeat(~mask, self.sizes)], self.sizes[~mask])

    def member_of(self, positions: np.ndarray) -> np.ndarray:
        """The number of the member that each position in `flat` belongs to."""
        return self.starts.searchsorted(positions, side="right") - 1


class PooledSource(StackedSource):
    """The common part of `ClassTasks` and `GroupTasks`, where the arguments are documented."""

    same_classes: bool = False
    examples_are: str = "examples"
    """What the examples are called in messages."""

    def __init__(
        self,
        examples: Dataset,
        members: BySplit[Mapping[str, Rows]],
        *,
        shots: Size,
        queries: Size,
        train_queries: Size | None,
        on_too_few: OnTooFew,
        seed: int,
        name: str,
        preprocessor: Preprocessor | None,
        left_out: Mapping[str, int] | None,
        gap: int = 0,
    ) -> None:
        self.queries = by_split(queries, train_queries, "queries")
        self.examples, self.on_too_few, self.seed, self.name, self.gap = examples, on_too_few, seed, name, gap
        self.preprocessor, self._left_out = preprocessor, dict(left_out or {})
        given = of_splits(members, name)
        self._all_pools = {split: Pool.of(rows, f"{name}: {self.member}") for split, rows in given.items()}
        check_disjoint(self._all_pools, len(examples), name, self.member, same_names=self.same_classes)
        self._set_shots(Range.of(shots, "shots", 1))

    def _set_shots(self, shots: Range) -> None:
        """Set the number of shots, and select the members that are large enough for it."""
        self.shots = shots
        self._pools, self.dropped = self._large_enough()
        self._check_pools()
        self.dropped |= self._left_out

    def _check_pools(self) -> None:
        """Check that the selected members suffice for a task."""

    def with_shots(self, shots: int) -> Self:
        other = copy(self)
        other._set_shots(Range.of(shots, "shots", 1))
        return other

    @property
    def training_settings(self) -> dict[str, Any]:
        """The numbers of `shots` and `queries`."""
        return {"shots": self.shots.plain(), "queries": self.queries["train"].plain()}

    def with_training(self, *, shots: Size | None = None, queries: Size | None = None) -> Self:
        other = copy(self)
        other._all_pools = {"train": self._all_pools["train"]}
        if queries is not None:
            other.queries = self.queries | {"train": Range.of(queries, "queries", 1)}
        other._set_shots(self.shots if shots is None else Range.of(shots, "shots", 1))
        return other

    def unit_names(self, split: Split) -> Sequence[str]:
        return self._pools[split].names if split in self._pools else ()

    def members(self, split: Split) -> dict[str, np.ndarray]:
        return dict(self._pools[split].items()) if split in self._pools else {}

    def _pool(self, split: Split) -> Pool:
        if split not in self._pools:
            splits, members = ", ".join(self._pools), plural(self.member)
            raise ValueError(f"{self.name} has no {split!r} split, only {splits}; give it {members} there")
        return self._pools[split]

    def _described_sizes(self) -> dict[str, Any]:
        sizes = {"shots": self.shots, "queries": self.queries["test"], "train_queries": self.queries["train"]}
        return {name: size.plain() for name, size in sizes.items()}

    def _described_data(self) -> dict[str, Any]:
        about = self.preprocessor.describe() if self.preprocessor else {}
        return about | if_any(columns=dict(self.understood), dropped=self.dropped)

    def _pretraining_positions(self, step: int, size: int) -> tuple[np.ndarray, np.random.Generator]:
        """Random positions in the training pool, from a generator that no task uses."""
        random = np.random.default_rng([self.seed, len(SPLITS), step])
        return random.integers(len(self._pool("train").flat), size=size), random

    def _large_enough(self) -> tuple[dict[Split, Pool], dict[str, int]]:
        """The pools without the members that are too small for a task, and what was left out: reason to count."""
        pools, dropped, shots = dict(self._all_pools), {}, self.shots
        for split, pool in pools.items():
            queries = self.queries[split].high
            needed = self.gap + (shots.low + 1 if self.on_too_few == "shrink" else shots.high + queries)
            short = pool.sizes < needed
            if not short.any():
                continue
            if self.on_too_few == "error":
                first = int(short.argmax())
                sizes = f"{shots.high} shots + {queries} queries" + (f" + a gap of {self.gap}" if self.gap else "")
                raise ValueError(
                    f"{self.name}: {self.member} {pool.names[first]!r} in {split} has {pool.sizes[first]} "
                    f"{self.examples_are}, but {sizes} need {needed}; lower shots or queries, or choose on_too_few: "
                    f"drop, or on_too_few: shrink, for {plural(self.member)} that are too small ({short.sum()} in "
                    f"{split})"
                )
            pools[split] = pool.without(short)
            dropped[f"{plural(self.member)} in {split} with fewer than {needed} {self.examples_are}"] = int(short.sum())
        return pools, dropped


class RowNumbers:
    """The row numbers of examples in place of the examples; as inputs and as targets if examples have `targets`."""

    def __init__(self, count: int, *, targets: bool) -> None:
        self.count, self.targets = count, targets

    def __len__(self) -> int:
        return self.count

    def take(self, rows: np.ndarray) -> Tree:
        numbers = torch.from_numpy(rows)
        return (numbers, numbers) if self.targets else numbers


def check_disjoint(
    pools: Mapping[Split, Pool], num_rows: int, where: str, kind: str, *, same_names: bool = False
) -> None:
    """Raise ValueError if a row does not exist, a row occurs twice, or a name in two splits, unless all names are."""
    splits_of_rows = np.full(num_rows, -1, np.int8)
    split_of_name: dict[str, Split] = {}
    for number, (split, pool) in enumerate(pools.items()):
        if len(pool.flat) and (pool.flat.min() < 0 or pool.flat.max() >= num_rows):
            raise ValueError(
                f"{where}: {split} points at rows {pool.flat.min()} … {pool.flat.max()}, but there are rows "
                f"0 … {num_rows - 1}"
            )
        repeated = np.flatnonzero(np.bincount(pool.flat, minlength=num_rows) > 1)
        if len(repeated):
            raise ValueError(f"{where}: row {repeated[0]} is listed twice in {split}; list each once, in one {kind}")
        leaked = np.flatnonzero(splits_of_rows[pool.flat] >= 0)
        names = [name for name in pool.names if name in split_of_name and not same_names]
        if len(leaked) or names:
            what = f"{kind} {names[0]!r}" if names else f"row {pool.flat[leaked[0]]}"
            raise ValueError(f"{where}: {what} is in {split} and in another split; keep it in one of them")
        splits_of_rows[pool.flat] = number
        split_of_name.update(dict.fromkeys(pool.names, split))


def plural(kind: str) -> str:
    """The plural of "class", "group" and the like."""
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"
