"""Tasks from ratings: a user is a task, and what they rated tells what they will make of other items.

All is columns: an item's number, a rating and a row number a rating, so that 20 million ratings fit in 4 GB.

Shape legend: n ratings, U users, T tasks, S support and Q query ratings at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.objectives import Objective
from kshot.tasks.columns import Columns, Raw, Values, moments, place_of, read_columns
from kshot.tasks.drawing import Range, Size, distinct
from kshot.tasks.encoding import Support
from kshot.tasks.reading import Reading, Table, open_table
from kshot.tasks.source import TaskSource, generator
from kshot.tasks.splitting import cut
from kshot.tasks.tables import BadRows, Members, distinct_values, group_rows, time_order
from kshot.types import SPLITS, Batch, Split, Task, Tree, tree_map

Cold = Literal["users", "items", "both", "none"]
"""What val and test hold that training has not seen: users, items, both; or later ratings of the same users."""

SHARES = {"ratio": [0.7, 0.15, 0.15]}


def ratings(
    path: Path | str,
    *,
    user: str = "user",
    item: str = "item",
    rating: str = "rating",
    time: str | None = None,
    users: Path | str | None = None,
    items: Path | str | None = None,
    cold: Cold = "users",
    split: Mapping[str, Any] | None = None,
    kinds: Mapping[str, str] | None = None,
    shots: Size = 10,
    queries: Size = 10,
    train_queries: Size | None = None,
    small: Literal["error", "drop"] = "error",
    reading: Mapping[str, Any] | None = None,
    bad_rows: BadRows = "error",
    seed: int = 0,
) -> RatingTasks:
    r"""Predict a user's ratings from a few of them.

    Ratings are standardised by the training ratings; figures are told in their own units. Inputs are a dict of

    - `item`: int64 (n,), the item's number; 0 is every item without a training rating,
    - `item_features`, `user_features`: float32 (n, F), the columns of `items` and `users` where those are given,
      encoded as in `table`.

    What val and test hold that training has not:

    - `cold: users`: the users are cut; all their ratings are in their own split.
    - `cold: items`: the items are cut. A support holds training items alone, a query items of the split, so in val and
      test those that no training task has shown.
    - `cold: both`: both are cut: new users, asked for new items from ratings of known ones.
    - `cold: none`: every user's ratings are cut, in the order of time where there is one: the query is of the split,
      the support from before it.

    With `time` the support are the user's latest ratings before the first of the query, and the query those that come
    next; else both are drawn at random.

    Args:
        path: a CSV, TSV, NDJSON or Parquet file with a row a rating.
        user, item, rating, time: its columns.
        users, items: tables of features, a row a user or item, named by the same column.
        cold: see above.
        split: how users and items are cut, see `splitting`; by default 70, 15 and 15 % by a hash of the name. Only
            `ratio` cuts both, or within users.
        kinds: what columns hold, where it is not what they look like.
        shots: support ratings.
        queries: query ratings.
        train_queries: the same in training tasks.
        small: what becomes of a user with too few ratings: "error", or "drop".
        reading: how a file of text is written; see `Reading`.
        bad_rows: "error", or "drop" to leave rows out that lack a value, or are of a user or item without features.
        seed: names the sequence of tasks.

    Raises:
        ValueError: what is wrong with a file or a value in it, with line and column; a user or item rated or described
            twice; users with too few ratings.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "ratings.csv"
        >>> rows = [f"{u},{(7 * u + 3 * k) % 50},{(u + k) % 5 + 1}" for u in range(40) for k in range(12)]
        >>> _ = path.write_text("user,item,rating\n" + "\n".join(rows))
        >>> task = ratings(path, shots=5, queries=5).task("train", 0)
        >>> task.support.inputs["item"].shape, task.query.targets.shape
        (torch.Size([5]), torch.Size([5, 1]))

    References:
        Lee, Im, Jang, Cho, Chung: MeLU: Meta-Learned User Preference Estimator for Cold-Start Recommendation, KDD 2019,
        arXiv:1908.00413, section 4.3: the four scenarios.

    Deviations:
        In MeLU's scenarios of new items a support has new items too; here its items are known ones, as a user's history
        is when an item comes out.
    """
    if cold not in ("users", "items", "both", "none"):
        raise ValueError(f"cold must be users, items, both or none, got {cold!r}")
    split = dict(split or SHARES)
    if cold in ("both", "none") and "ratio" not in split:
        raise ValueError(f"cold: {cold} is cut by ratio, as in split: {{ratio: [0.7, 0.15, 0.15]}}; got {split}")
    if small not in ("error", "drop"):
        raise ValueError(f"small must be error or drop, got {small!r}")
    given, how = dict(kinds or {}), Reading(**(reading or {}))
    more = [split["column"]] if "column" in split else []
    found = open_table(path, how, columns=[user, item, rating, *([time] if time else []), *more])
    scores = found.numbers(rating)
    found.missing(rating, np.isnan(scores), "a row needs one")
    order = time_order(found, time, given) if time else None
    for name in (user, item):
        found.missing(name, found.keys(name).is_null().to_numpy(), "a row needs one")
    described = {
        name: _Features.open(table, how, name, given, found) if table is not None else None
        for name, table in ((user, users), (item, items))
    }
    found.settle(bad_rows)
    found.release(user, item, *more)
    of_users, of_items, owner, number = _grouped(found, user, item, order)
    if (again := _repeated(owner, number, len(of_items.names))).any():
        found.bad(
            item, _at(of_users.flat[again], len(found)), "is rated a second time by the same user; keep one rating"
        )
        found.settle(bad_rows)
        of_users, of_items, owner, number = _grouped(found, user, item, order)
    flat = of_users.flat  # the ratings, users end to end, each in the order of time
    parts_of_users = _cut(of_users, split, "user", found) if cold in ("users", "both") else None
    parts_of_items = _cut(of_items, split, "item", found) if cold in ("items", "both") else None
    pools = _pools(
        of_users, owner, number, parts_of_users, parts_of_items, split["ratio"] if cold == "none" else None, time
    )
    train = np.zeros(len(flat), bool)
    for own in (pools["train"].support, pools["train"].query):
        train[own.rows] = True
    scores = scores[flat]
    mean, std = moments(scores, train)
    std = std or 1.0
    known = np.zeros(len(of_items.names), bool)
    known[number[train]] = True
    numbers = np.where(known, known.cumsum(), 0)  # 0: no training rating
    sides = {}
    for name, mask, places, names in (
        (user, np.unique(owner[train]), owner, of_users.names),
        (item, np.flatnonzero(known), number, of_items.names),
    ):
        if (features := described[name]) is not None:
            sides[name] = features.fit(names, mask, places)
    encoding = RatingEncoding(
        item=item,
        rating=rating,
        mean=mean,
        std=std,
        items=tuple(name for name, seen in zip(of_items.names, known.tolist()) if seen),
        item_columns=sides[item].columns if item in sides else None,
        user_columns=sides[user].columns if user in sides else None,
        reading=how,
    )
    examples = RatingExamples(
        numbers[number].astype(np.int32),
        ((scores - mean) / std).astype(np.float32),
        {f"{side}_features": sides[name] for side, name in (("item", item), ("user", user)) if name in sides},
    )
    source = RatingTasks(
        examples, pools, of_users.names, encoding, shots=shots, queries=queries, train_queries=train_queries,
        ordered=time is not None, small=small, cold=cold, seed=seed,
    )  # fmt: skip
    if found.dropped["rows"]:
        source.dropped[f"bad rows, the first: {found.dropped['first'][0]}"] = found.dropped["rows"]
    return source


class Side(NamedTuple):
    """The ratings of one half of a split's tasks: user u has `rows[bounds[u] : bounds[u + 1]]`, ordered by time."""

    rows: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, where: np.ndarray, owner: np.ndarray, users: int) -> Side:
        rows = np.flatnonzero(where)
        return cls(rows, np.concatenate([[0], np.bincount(owner[rows], minlength=users).cumsum()]))


class Sides(NamedTuple):
    """Where a split's supports and queries are taken from; one and the same, or two that share no rating."""

    support: Side
    query: Side

    @property
    def same(self) -> bool:
        return self.support is self.query


def _pools(
    members: Members,
    owner: np.ndarray,
    item: np.ndarray,
    users: Mapping[Split, np.ndarray] | None,
    items: Mapping[Split, np.ndarray] | None,
    ratio: Sequence[float] | None,
    time: str | None,
) -> dict[Split, Sides]:
    """The ratings that each split's supports and queries are taken from."""
    count = len(members.names)
    if ratio is not None:  # each user's ratings, cut
        starts = members.sizes.cumsum() - members.sizes
        rank = np.arange(len(owner)) - starts[owner]
        if time is None:
            shuffled = np.random.default_rng(0).random(len(owner))
            rank = np.lexsort((shuffled, owner)).argsort() - starts[owner]
        share = (rank + 0.5) / members.sizes[owner]
        part = (share >= ratio[0]).astype(np.int8) + (share >= ratio[0] + ratio[1])
        found: dict[Split, Sides] = {}
        for place, split in enumerate(SPLITS):
            if ratio[place]:
                query = Side.of(part == place, owner, count)
                found[split] = Sides(query if place == 0 else Side.of(part < place, owner, count), query)
        return found
    parts = list(users or items or {})
    found = {}
    for split in parts:
        own = np.ones(len(owner), bool) if users is None else users[split][owner]
        if items is None:
            side = Side.of(own, owner, count)
            found[split] = Sides(side, side)
        else:
            known = Side.of(own & items["train"][item], owner, count)
            if split == "train":
                found[split] = Sides(known, known)
            elif split in items:
                found[split] = Sides(known, Side.of(own & items[split][item], owner, count))
    return found


class RatingTasks(TaskSource):
    """Tasks of `ratings`.

    Attributes:
        user_names: for each split the users whose tasks it has.
        examples: the ratings, users end to end.
        dropped: what was left out: reason to count.
    """

    encoding: RatingEncoding

    def __init__(
        self,
        examples: RatingExamples,
        sides: Mapping[Split, Sides],
        users: Sequence[str],
        encoding: RatingEncoding,
        *,
        shots: Size,
        queries: Size,
        train_queries: Size | None,
        ordered: bool,
        small: Literal["error", "drop"],
        cold: Cold,
        seed: int,
    ) -> None:
        self.shots = Range.of(shots, "shots", 1)
        asked = Range.of(queries, "queries", 1)
        train = asked if train_queries is None else Range.of(train_queries, "train_queries", 1)
        self.queries = dict.fromkeys(SPLITS, asked) | {"train": train}
        self.examples, self.encoding, self.objective = examples, encoding, encoding.objective
        self.ordered, self.small, self.cold, self.seed = ordered, small, cold, seed
        self.dropped: dict[str, int] = {}
        self._sides = dict(sides)
        self._users: dict[Split, np.ndarray] = {}
        self._first: dict[Split, np.ndarray] = {}
        for split in sides:
            self._choose(split, users)
        self.user_names = {split: tuple(users[user] for user in own) for split, own in self._users.items()}

    def counts(self, split: Split) -> dict[str, int]:
        """The users of a split: name to how many of their ratings a query can ask for."""
        asked = np.diff(self._sides[split].query.bounds)[self._users[split]]
        return dict(zip(self.user_names[split], asked.tolist()))

    def task(self, split: Split, index: int) -> Task:
        return tree_map(lambda leaf: leaf[0], self.stack(split, [index]))

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        if split not in self._sides:
            raise ValueError(f"these ratings have no {split!r} split, only {', '.join(self._sides)}")
        (support, query), S, Q = self._sides[split], self.shots.high, self.queries[split].high
        draws = np.stack([generator(self.seed, split, index).random(4 + 2 * (S + Q)) for index in indices])
        of_user, of_shots, of_queries, of_start = draws[:, :4].T
        place_T = (of_user * len(self._users[split])).astype(np.int64)
        user_T = self._users[split][place_T]
        shots_T, queries_T = self.shots.at(of_shots), self.queries[split].at(of_queries)
        has_S, has_Q = (np.diff(side.bounds)[user_T] for side in (support, query))
        if self.ordered:
            least_T = self._first[split][place_T]  # the first query that has enough before it
            start_T = least_T + (of_start * (has_Q - Q - least_T + 1)).astype(np.int64)
            before_T = self._before(split, query.bounds[user_T] + start_T, user_T)
            places_S, places_Q = (before_T - shots_T)[:, None] + np.arange(S), start_T[:, None] + np.arange(Q)
        elif self._sides[split].same:
            places = distinct(draws[:, 4:].reshape(-1, 2, S + Q), has_S)
            places_S, places_Q = places[:, :S], places[:, S:]
        else:
            places_S = distinct(draws[:, 4 : 4 + 2 * S].reshape(-1, 2, S), has_S)
            places_Q = distinct(draws[:, 4 + 2 * S :].reshape(-1, 2, Q), has_Q)
        batches = []
        for side, places, count_T in ((support, places_S, shots_T), (query, places_Q, queries_T)):
            real = np.arange(places.shape[1]) < count_T[:, None]
            rows = side.rows[side.bounds[user_T][:, None] + np.where(real, places, places[:, :1])]
            batches.append(Batch(*self.examples.take(rows), torch.from_numpy(real.astype(np.float32))))
        return Task(*batches)

    def describe(self) -> dict[str, Any]:
        return {
            "source": "ratings",
            "shots": self.shots.plain(),
            "queries": self.queries["test"].plain(),
            "train_queries": self.queries["train"].plain(),
            "cold": self.cold,
            "order": "given" if self.ordered else "random",
            "seed": self.seed,
            "ratings": len(self.examples),
            "users": {split: len(names) for split, names in self.user_names.items()},
            **self.encoding.describe(),
            **({"dropped": self.dropped} if self.dropped else {}),
        }

    def _before(self, split: Split, places: np.ndarray, users: np.ndarray) -> np.ndarray:
        """How many support ratings of its user come before each place among the queries."""
        support, query = self._sides[split]
        if self._sides[split].same:
            return places - query.bounds[users]
        return support.rows.searchsorted(query.rows[places]) - support.bounds[users]

    def _choose(self, split: Split, names: Sequence[str]) -> None:
        """Keep the users with enough ratings, and find where their first query may begin."""
        (support, query), shots, queries = self._sides[split], self.shots.high, self.queries[split].high
        has_U, asked_U = np.diff(support.bounds), np.diff(query.bounds)
        first_U = np.zeros(len(has_U), np.int64)
        if not self.ordered:
            enough = has_U >= shots + queries if self._sides[split].same else (has_U >= shots) & (asked_U >= queries)
        elif self._sides[split].same:
            first_U += shots
            enough = has_U >= shots + queries
        else:
            able = np.flatnonzero(has_U >= shots)
            last = support.rows[support.bounds[able] + shots - 1]  # the row that completes a support
            first_U[able] = query.rows.searchsorted(last) - query.bounds[able]
            enough = np.zeros(len(has_U), bool)
            enough[able] = asked_U[able] - first_U[able] >= queries
        there = asked_U > 0
        short = np.flatnonzero(there & ~enough)
        if len(short) and self.small == "error":
            user = int(short[0])
            raise ValueError(
                f"ratings: user {names[user]!r} in {split} has {has_U[user]} ratings to support and {asked_U[user]} to "
                f"query, but {shots} shots + {queries} queries{' in this order' if self.ordered else ''} cannot be had "
                f"of them; lower shots or queries, or leave such users out by small: drop ({len(short):,} in {split})"
            )
        if len(short):
            self.dropped[f"users in {split} with too few ratings"] = len(short)
        self._users[split] = np.flatnonzero(enough)
        self._first[split] = first_U[enough]
        if not enough.any():
            raise ValueError(f"ratings: no user in {split} has enough ratings for {shots} shots + {queries} queries")


class RatingExamples:
    """Ratings as columns: (inputs, targets), the features of users and items spread out where they are taken.

    Args:
        items: int32 (n,), numbers of items.
        targets: float32 (n,), standardised.
        features: name of the input to the features behind it.
    """

    def __init__(self, items: np.ndarray, targets: np.ndarray, features: Mapping[str, FittedFeatures]) -> None:
        self.items, self.targets, self.features = items, targets, dict(features)

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: np.ndarray) -> tuple[Tree, Tensor]:
        inputs = {"item": torch.from_numpy(self.items[rows].astype(np.int64))}
        for name, own in self.features.items():
            inputs[name] = torch.from_numpy(own.columns.spread(own.values.rows(own.places[rows])))
        return inputs, torch.from_numpy(self.targets[rows][..., None])


class FittedFeatures(NamedTuple):
    """The features of users or items: the columns, a row each, and the row that belongs to each rating."""

    columns: Columns
    values: Values
    places: np.ndarray


class _Features(NamedTuple):
    """A table of users or items, as read."""

    raw: dict[str, Raw]
    names: Any  # polars Series of words

    @classmethod
    def open(cls, path: Path | str, reading: Reading, key: str, kinds: Mapping[str, str], rated: Table) -> _Features:
        """Read a table of features; ratings of what it lacks are bad rows."""
        found = open_table(path, reading)
        found.need(key)
        names = found.labels(key)
        found.missing(key, names.is_null().to_numpy(), "a row needs one")
        chosen = [name for name in found.frame.columns if name != key]
        raw = read_columns(found, {name: kinds.get(name) or found.kind(name) for name in chosen})
        found.bad(key, (names.is_duplicated() & names.is_not_null()).to_numpy(), "has more than one row")
        found.settle()
        words = rated.labels(key)
        rated.bad(key, (~words.is_in(names.implode()) & words.is_not_null()).to_numpy(), f"has no row in {path}")
        return cls(raw, names)

    def fit(self, members: Sequence[str], train: np.ndarray, places: np.ndarray) -> FittedFeatures:
        """Fit to the members of training; `places` (n,) is the member of each rating."""
        import polars as pl

        row = place_of(pl.Series(members), self.names.to_list())  # of each member in the table
        mask = np.zeros(len(self.names), bool)
        mask[row[train]] = True
        columns = Columns.fit(self.raw, mask)
        return FittedFeatures(columns, columns.encode(self.raw), row[places])


@dataclass(frozen=True)
class RatingEncoding:
    """How rows of ratings become inputs and targets. Features stand beside the ratings, in the same file.

    Attributes:
        item, rating: the columns.
        mean, std: of the training ratings.
        items: the names of the items with training ratings; number k has the number k + 1.
        item_columns, user_columns: the columns of features, if there are any.
        reading: how the file was written.
    """

    item: str
    rating: str
    mean: float
    std: float
    items: tuple[str, ...]
    item_columns: Columns | None
    user_columns: Columns | None
    reading: Reading

    @property
    def objective(self) -> Objective:
        """What the tasks ask."""
        return objectives.in_units([self.std], [self.rating])

    def support(self, path: Path) -> Support:
        """One user's ratings."""
        found, inputs = self._read(path, [self.rating])
        scores = found.numbers(self.rating)
        found.missing(self.rating, np.isnan(scores), "a support row needs one")
        found.settle()
        return Support(inputs, torch.from_numpy(((scores - self.mean) / self.std).astype(np.float32)[:, None]), {})

    def inputs(self, path: Path, kept: dict[str, Any]) -> Tree:
        """Items to predict for; each has its name in `answers` by its row."""
        found, inputs = self._read(path, [])
        found.settle()
        return inputs

    def answers(self, prediction: Tensor, kept: dict[str, Any]) -> dict[str, list[Any]]:
        scores = prediction[:, 0].double() * self.std + self.mean
        return {"row": list(range(1, len(scores) + 1)), self.rating: scores.tolist()}

    def describe(self) -> dict[str, Any]:
        told: dict[str, Any] = {"inputs": {self.item: f"the number of one of {len(self.items):,} items, or 0"}}
        for columns in (self.item_columns, self.user_columns):
            told["inputs"] |= columns.describe() if columns else {}
        return told | {"target": f"{self.rating}: (y − {self.mean:.4g}) / {self.std:.4g}"}

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("item", "rating", "mean", "std", "items")}
        columns = {name: getattr(self, name) for name in ("item_columns", "user_columns")}
        written = {name: own.to_json() if own else None for name, own in columns.items()}
        return {"kind": "ratings", "reading": self.reading._asdict(), **plain, **written}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RatingEncoding:
        plain = {name: own for name, own in data.items() if name != "kind"}
        for name in ("item_columns", "user_columns"):
            plain[name] = Columns.from_json(data[name]) if data[name] else None
        return cls(**plain | {"items": tuple(data["items"]), "reading": Reading(**data["reading"])})

    def _read(self, path: Path, others: list[str]) -> tuple[Table, Tree]:
        sides = {"item_features": self.item_columns, "user_features": self.user_columns}
        kinds = {name: kind for columns in sides.values() if columns for name, kind in columns.kinds.items()}
        found = open_table(path, self.reading, columns=[self.item, *kinds, *others])
        raw = read_columns(found, kinds)
        places = place_of(found.labels(self.item), self.items).astype(np.int64) + 1
        inputs = {"item": torch.from_numpy(np.where(places > len(self.items), 0, places))}
        for name, columns in sides.items():
            if columns:
                inputs[name] = torch.from_numpy(columns.spread(columns.encode(raw)))
        return found, inputs


def _grouped(
    table: Table, user: str, item: str, order: np.ndarray | None
) -> tuple[Members, Members, np.ndarray, np.ndarray]:
    """The good rows by user and by item; and, users end to end, the number of each rating's user and of its item."""
    of_items = group_rows(table.keys(item), table.good)
    number = np.full(len(table), -1, np.int32)
    number[of_items.flat] = np.repeat(np.arange(len(of_items.names), dtype=np.int32), of_items.sizes)
    of_users = group_rows(table.keys(user), table.good, order)
    owner = np.repeat(np.arange(len(of_users.names), dtype=np.int32), of_users.sizes)
    return of_users, of_items, owner, number[of_users.flat]


def _repeated(owner: np.ndarray, item: np.ndarray, items: int) -> np.ndarray:
    """The ratings, a mask, whose user has rated the item before; one could be a query whose answer the support has."""
    pairs = owner.astype(np.int64) * items + item
    if (np.diff(np.sort(pairs)) > 0).all():
        return np.zeros(len(pairs), bool)
    order = np.argsort(pairs, kind="stable")
    return _at(order[1:][np.diff(pairs[order]) == 0], len(pairs))


def _at(rows: np.ndarray, count: int) -> np.ndarray:
    """A mask (count,) that is true at rows."""
    mask = np.zeros(count, bool)
    mask[rows] = True
    return mask


def _cut(members: Members, split: Mapping[str, Any], kind: str, table: Table) -> dict[Split, np.ndarray]:
    """For each split, whether each member is of it (members,)."""
    values = distinct_values(members, table, split["column"]) if "column" in split else None
    parts = cut(members.names, split, kind=kind, values=values)
    return {part: np.isin(members.names, names) for part, names in parts.items()}
