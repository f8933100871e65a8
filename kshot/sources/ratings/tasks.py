"""Sampling of tasks of ratings: users, their support and query ratings, and items without a click.

Shape legend: n ratings, U users; T tasks of S support and Q query ratings, N items without a click.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from kshot.annotations import Size
from kshot.sources.ratings.dataset import RatingDataset
from kshot.sources.ratings.pools import Sides
from kshot.sources.ratings.preprocessor import RatingPreprocessor
from kshot.sources.rows import Members
from kshot.tasks.pool import OnTooFew
from kshot.tasks.sampling import by_split, distinct
from kshot.tasks.source import StackedSource, TaskSource, generator, if_any
from kshot.types import SPLITS, Batch, Split, Task, tree_map

Start = Literal["any", "first"]
"""Where in time a task begins: anywhere in the history of a user, or with the first ratings of a new user."""

TrainOrder = Literal["given", "random", "both"]
"""Whether training tasks keep to the order of time, ignore it, or alternate."""


class Log(NamedTuple):
    """Ratings as columns (n,): numbers of users and items, and ratings in their own units."""

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray


class RatingTasks(StackedSource):
    """Tasks of `ratings`, where the arguments are documented.

    Attributes:
        user_names: the users of each split that has tasks of them.
        examples: the ratings, ordered by user.
        alternating: whether every other training task keeps to the order of time.
        enumerated: whether task k of val and test is of user k modulo their number, rather than of a random user.
        dropped: what was left out: reason to count.
    """

    preprocessor: RatingPreprocessor
    member = "user"
    copies_are_errors = False

    def __init__(
        self,
        examples: RatingDataset,
        sides: Mapping[Split, Sides],
        users: Members,
        preprocessor: RatingPreprocessor,
        *,
        shots: Size,
        train_shots: Size | None,
        queries: Size,
        train_queries: Size | None,
        negatives: tuple[int, int],
        ordered: bool,
        start: Start,
        train_order: TrainOrder,
        user_sampling_power: float,
        on_too_few: OnTooFew,
        cold: str,
        left_out: Mapping[str, int],
        seed: int,
    ) -> None:
        self.queries = by_split(queries, train_queries, "queries")
        clicks = preprocessor.rating is None
        if clicks and min(negatives) < 1:
            raise ValueError(f"clicks need at least 1 item without a click for each, got negatives {negatives}")
        of_queries = dict.fromkeys(SPLITS, negatives[1]) | {"train": negatives[0]}
        self.negatives = {split: (negatives[0], of_queries[split]) if clicks else (0, 0) for split in SPLITS}
        self.examples, self.preprocessor, self.objective = examples, preprocessor, preprocessor.objective
        self.on_too_few, self.cold, self.seed = on_too_few, cold, seed
        self.ordered = dict.fromkeys(SPLITS, ordered) | {"train": ordered and train_order != "random"}
        self.alternating, self.enumerated = ordered and train_order == "both", start == "first"
        self._bounds = np.concatenate([[0], users.sizes.cumsum()])
        self._sides, self._names, self._left_out = dict(sides), users.names, left_out
        self._train_shots, self._user_sampling_power = train_shots, float(user_sampling_power)
        self._set_shots(shots)

    def _set_shots(self, shots: Size) -> None:
        """Set the number of shots, and select the users with enough ratings."""
        self.shots = by_split(shots, self._train_shots, "shots")
        self.dropped: dict[str, int] = {}
        self._users = {split: self._select_users(split) for split in self._sides}
        self.dropped |= self._left_out
        weights = self._sides["train"].query.sizes[self._users["train"]] ** self._user_sampling_power
        self._cumulative = weights.cumsum() / weights.sum() if self._user_sampling_power else None
        self.user_names: dict[str, tuple[Any, ...]] = {
            split: tuple(self._names[user] for user in users) for split, users in self._users.items()
        }

    def with_shots(self, shots: int) -> RatingTasks:
        """The same tasks with other shots, except in training if `train_shots` was given."""
        other = copy(self)
        other._set_shots(shots)
        return other

    @property
    def owners(self) -> np.ndarray:
        """The user number of each rating, int32 (n,)."""
        return np.repeat(np.arange(len(self._bounds) - 1, dtype=np.int32), np.diff(self._bounds))

    def sizes(self, split: Split) -> dict[str, int]:
        """The number of ratings of each user of a split that queries can contain."""
        counts = self._sides[split].query.sizes[self._users[split]]
        return dict(zip(self.user_names[split], counts.tolist()))

    def training_log(self) -> Log:
        """The ratings of training tasks."""
        support, query = self._sides["train"]
        rows = support.rows if self._sides["train"].same else np.union1d(support.rows, query.rows)
        return Log(self.owners[rows], self.examples.items[rows], self.preprocessor.scores(self.examples.targets[rows]))

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        if split not in self._sides:
            raise ValueError(f"these ratings have no {split!r} split, only {', '.join(self._sides)}")
        if split != "train" or not self.alternating:
            return self._stack(split, indices, self.ordered[split])
        by_parity = [[index for index in indices if index % 2 == odd] for odd in (0, 1)]
        stacks = [self._stack(split, part, ordered=not odd) for odd, part in enumerate(by_parity) if part]
        positions = np.argsort(np.argsort([index % 2 for index in indices], kind="stable"), kind="stable")
        return tree_map(lambda *leaves: torch.cat(leaves)[positions], *stacks)

    def _stack(self, split: Split, indices: Sequence[int], ordered: bool) -> Task:
        """Tasks in the order of time, or in any order."""
        sides, S, Q = self._sides[split], self.shots[split].high, self.queries[split].high
        support, query = sides
        num_unclicked = S * self.negatives[split][0], Q * self.negatives[split][1]
        num_draws = 4 + 2 * (S + Q) + 2 * sum(num_unclicked)
        draws = np.stack([generator(self.seed, split, index).random(num_draws) for index in indices])
        of_user, of_shots, of_queries, of_start = draws[:, :4].T
        user_T = self._users[split][self._user_positions(split, indices, of_user)]
        shots_T, queries_T = self.shots[split].at(of_shots), self.queries[split].at(of_queries)
        of_support = draws[:, 4 : 4 + 2 * S].reshape(-1, 2, S)
        of_query = draws[:, 4 + 2 * S : 4 + 2 * (S + Q)].reshape(-1, 2, Q)
        has_S, has_Q = support.sizes[user_T], query.sizes[user_T]
        if self.enumerated and ordered:
            after_T = sides.queries_after(user_T, shots_T)
            queries_T = np.minimum(queries_T, has_Q - after_T)
            positions_S = np.broadcast_to(np.arange(S), (len(user_T), S))
            positions_Q = after_T[:, None] + distinct(of_query, has_Q - after_T, queries_T)
        elif ordered:
            least_T = sides.queries_after(user_T, np.full(len(user_T), S))  # the first with enough ratings before it
            queries_T = np.minimum(queries_T, has_Q - least_T)
            start_T = least_T + (of_start * (has_Q - np.minimum(Q, has_Q - least_T) - least_T + 1)).astype(np.int64)
            before_T = sides.support_before(query.bounds[user_T] + start_T, user_T)
            positions_S, positions_Q = (before_T - shots_T)[:, None] + np.arange(S), start_T[:, None] + np.arange(Q)
        elif sides.same:
            queries_T = np.minimum(queries_T, has_S - S)
            both = draws[:, 4 : 4 + 2 * (S + Q)].reshape(-1, 2, S + Q)
            positions = distinct(both, has_S, np.minimum(S + Q, has_S))
            positions_S, positions_Q = positions[:, :S], positions[:, S:]
        else:
            queries_T = np.minimum(queries_T, has_Q)
            positions_S, positions_Q = distinct(of_support, has_S), distinct(of_query, has_Q, np.minimum(Q, has_Q))
        unclicked = self._unclicked(user_T, draws[:, 4 + 2 * (S + Q) :], sum(num_unclicked))
        batches = []
        for side, positions, count_T, items, per_click in (
            (support, positions_S, shots_T, unclicked[:, : num_unclicked[0]], self.negatives[split][0]),
            (query, positions_Q, queries_T, unclicked[:, num_unclicked[0] :], self.negatives[split][1]),
        ):
            real = np.arange(positions.shape[1]) < count_T[:, None]
            rows = side.rows[side.bounds[user_T][:, None] + np.where(real, positions, positions[:, :1])]
            inputs, targets = self.examples.take(rows)
            if per_click:
                more = self.examples.unclicked(items, rows[:, 0])
                inputs = {name: torch.cat([inputs[name], more[name]], 1) for name in inputs}
                targets = torch.cat([targets, 1 - targets[:, :1].expand(-1, items.shape[1], -1)], 1)
                real = np.concatenate([real, np.arange(items.shape[1]) < per_click * count_T[:, None]], 1)
            batches.append(Batch(inputs, targets, torch.from_numpy(real.astype(np.float32))))
        return Task(*batches)

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray:
        """The user of each task, by position in `user_names`."""
        first = np.array([generator(self.seed, split, index).random() for index in indices])
        return self._user_positions(split, indices, first)

    def unit_names(self, split: Split) -> Sequence[str]:
        return self.user_names[split]

    def users(self, split: Split, indices: Sequence[int]) -> np.ndarray:
        """The number of the user of each task, as in `training_log`."""
        return self._users[split][self.units(split, indices)]

    def describe(self) -> dict[str, Any]:
        return {
            "source": "ratings",
            "shots": self.shots["test"].plain(),
            "train_shots": self.shots["train"].plain(),
            "queries": self.queries["test"].plain(),
            "train_queries": self.queries["train"].plain(),
            "cold": self.cold,
            "order": "the first ratings" if self.enumerated else "given" if self.ordered["test"] else "random",
            "train_order": "both" if self.alternating else "given" if self.ordered["train"] else "random",
            **({"negatives": list(self.negatives["test"])} if self.preprocessor.rating is None else {}),
            "seed": self.seed,
            "ratings": len(self.examples),
            "users": {split: len(names) for split, names in self.user_names.items()},
            **self.preprocessor.describe(),
            **if_any(dropped=self.dropped),
        }

    def _user_positions(self, split: Split, indices: Sequence[int], draws: np.ndarray) -> np.ndarray:
        """The users (T,) of tasks, among those of a split, from a uniform draw (T,) of each."""
        count = len(self._users[split])
        if self.enumerated and split != "train":
            return np.array(indices) % count
        if split == "train" and self._cumulative is not None:
            return np.minimum(self._cumulative.searchsorted(draws, side="right"), count - 1)
        return (draws * count).astype(np.int64)

    def _unclicked(self, users: np.ndarray, draws: np.ndarray, count: int) -> np.ndarray:
        """Numbers (T, N) of distinct training items that each user (T,) never touched, in any split."""
        if not count:
            return np.zeros((len(users), 0), np.int64)
        touched = [self._touched(user) for user in users.tolist()]
        num_others = np.array([len(self.preprocessor.items) - len(items) for items in touched])
        numbers = distinct(draws.reshape(-1, 2, count), num_others)
        for row, items in zip(numbers, touched):  # the k-th untouched item: k plus the touched ones below it
            row += 1 + np.searchsorted(items - 1 - np.arange(len(items)), row, side="right")
        return numbers

    def _touched(self, user: int) -> np.ndarray:
        """The numbers of the training items that a user touched, ascending."""
        numbers = np.sort(self.examples.items[self._bounds[user] : self._bounds[user + 1]])
        return numbers[numbers.searchsorted(1) :].astype(np.int64)

    def _select_users(self, split: Split) -> np.ndarray:
        """The users of a split with enough ratings for a task."""
        sides, shots, queries = self._sides[split], self.shots[split].high, self.queries[split].high
        has_S, has_Q = sides.support.sizes, sides.query.sizes
        able = np.flatnonzero(has_S >= shots)
        left_U = np.full(len(has_S), -1)
        left_U[able] = has_Q[able]
        if self.ordered[split] or sides.same:
            left_U[able] -= sides.queries_after(able, np.full(len(able), shots))
        enough = left_U >= (1 if self.on_too_few == "shrink" else queries)
        short = np.flatnonzero((has_Q > 0) & ~enough)
        if len(short) and self.on_too_few == "error":
            user = int(short[0])
            in_order = " in this order" if self.ordered[split] else ""
            raise ValueError(
                f"ratings: user {self._names[user]!r} in {split} has {has_S[user]} ratings to support and "
                f"{has_Q[user]} to query, too few for {shots} shots + {queries} queries{in_order}; lower shots or "
                "queries, use fewer queries of such users by on_too_few: shrink, or leave them out by on_too_few: drop "
                f"({len(short):,} in {split})"
            )
        if len(short):
            self.dropped[f"users in {split} with too few ratings"] = len(short)
        users = np.flatnonzero(enough)
        if not len(users):
            raise ValueError(f"ratings: no user in {split} has enough ratings for {shots} shots + {queries} queries")
        negatives, num_items = self.negatives[split], len(self.preprocessor.items)
        needed = shots * negatives[0] + queries * negatives[1]
        if needed:
            most = max(len(self._touched(user)) for user in users.tolist())
            if num_items - most < needed:
                raise ValueError(
                    f"ratings: {needed} items without a click are needed for a task of {split}, but of {num_items} "
                    f"items a user clicked {most}; lower shots, queries or negatives"
                )
        return users


def ratings_of(source: TaskSource) -> RatingTasks | None:
    """The tasks of ratings of a source, watched or not; None for other sources."""
    inner = getattr(source, "source", source)
    return inner if isinstance(inner, RatingTasks) else None
