"""Tasks from ratings or clicks: a user is a task, and what they rated tells what they will make of other items.

All is columns: an item's number, a rating and a row number a rating, so that 20 million ratings fit in 4 GB.

Shape legend: n ratings, U users, I items, L levels; T tasks of S support and Q query ratings, N items not clicked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from kshot.annotations import EMPTY, Fraction, PositiveInt
from kshot.data.tables.columns import moments
from kshot.data.tables.table import Reading, ReadingOptions, Table
from kshot.sources.ratings.dataset import Features, RatingDataset, UserFeatures, opened
from kshot.sources.ratings.preprocessor import ItemMean, RatingPreprocessor, SignupTime
from kshot.sources.rows import BadRows, Members, distinct_values, group_rows, left_out_of, times_of
from kshot.tasks.pool import OnTooFew
from kshot.tasks.sampling import Range, Size, distinct
from kshot.tasks.source import TaskSource, generator
from kshot.tasks.splitting import DEFAULT_SPLIT, cut
from kshot.types import SPLITS, Batch, Split, Task, tree_map

Cold = Literal["users", "items", "both", "none"]
"""What val and test hold that training has not seen: users, items, both; or later ratings of the same users."""

Start = Literal["any", "first"]
"""Where in time a task begins: anywhere in a user's history, or with their first ratings, as of a new user."""

TrainOrder = Literal["given", "random", "both"]
"""Whether training tasks keep to the order of time, or don't, or every other one does."""

MOST_LEVELS = 32


def ratings(
    path: Path | str | Table,
    *,
    user: str = "user",
    item: str = "item",
    rating: str | None = "rating",
    time: str | None = None,
    users: Path | str | Table | None = None,
    items: Path | str | Table | None = None,
    title: str | None = None,
    target_type: Literal["number", "levels"] = "number",
    like: float | None = None,
    item_mean_feature: bool = False,
    signup_time: bool = False,
    negatives: PositiveInt = 4,
    query_negatives: PositiveInt | None = None,
    cold: Cold = "users",
    start: Start = "any",
    train_order: TrainOrder = "given",
    user_sampling_power: Fraction = 0.0,
    split: Mapping[str, Any] = DEFAULT_SPLIT,
    kinds: Mapping[str, str] = EMPTY,
    shots: Size = 10,
    train_shots: Size | None = None,
    queries: Size = 10,
    train_queries: Size | None = None,
    on_too_few: OnTooFew = "error",
    reading: ReadingOptions = EMPTY,
    bad_rows: BadRows = "error",
    seed: int = 0,
) -> RatingTasks:
    r"""Predict a user's ratings from a few of them.

    Ratings are standardised by the training ratings; figures are told in their own units. Inputs are a dict of

    - `item`: int64 (n,), the item's number; 0 is every item without a training rating,
    - `item_mean`, if asked for: float32 (n, 2), how far the item is above the mean by the training ratings of other
      users, shrunk as if by 5 ratings at the mean and by 1; in deviations,
    - `item_features`, `user_features`: float32 (n, F), the columns of `items` and `users` where those are given,
      encoded as in `table`; those of the user end with 10 numbers that tell when they came, if that is asked for.

    What val and test hold that training has not:

    - `cold: users`: the users are cut; all their ratings are in their own split.
    - `cold: items`: the items are cut. A support holds training items alone, a query items of the split, so in val and
      test those that no training task has shown.
    - `cold: both`: both are cut: new users, asked for new items from ratings of known ones.
    - `cold: none`: every user's ratings are cut, in the order of time where there is one: the query is of the split,
      the support from before it.

    With `time` the support are the user's latest ratings before the first of the query, and the query those that come
    next; else both are drawn at random. `start: first` makes tasks of users who have just come: the support are their
    first ratings, the query any of the later ones, and in val and test users are taken in turn.

    Without a rating a row is a click, or whatever was done with an item: a task's examples are those, and items that
    the user never touched, `negatives` for each, drawn evenly from all items of training. Targets are then one-hot
    (n, 2), the second for a click.

    Args:
        path: a CSV, TSV, NDJSON or Parquet file with a row a rating.
        user, item, rating, time: its columns; None for `rating` where rows are clicks.
        users, items: tables of features, a row a user or item, named by the same column.
        title: the column of `items` with what a person calls an item, which is no feature.
        target_type: "number", standardised; or "levels", where ratings have few values: targets are one-hot (n, L), and
            a prediction a distribution over them, see `objectives.levels`.
        like: the rating from which on an item is liked, for precision and recall; the median of the training ratings.
        item_mean_feature: whether inputs tell the item's standing with other users. A training task's own ratings are
            left out of it, as those of a new user are, so that a learner sees in training how far it can be trusted.
        signup_time: whether inputs tell the time of a user's first rating: how people rate, and what, changes over the
            years. It is told by how far it is through each tenth of the training users, in the order in which they
            came.
        negatives, query_negatives: for each click; the latter, of queries in val and test, is the former by default.
        cold: see above.
        start: see above.
        train_order: "random" lets training tasks draw support and query from all of a user's ratings, whatever the
            time: more tasks of the same data, but not quite such as are asked. With "both" it is every other one. Those
            of val and test keep to the time.
        user_sampling_power: training tasks are of a user of $n$ ratings in proportion to
            $n^{\text{user\_sampling\_power}}$; 0 draws users evenly, 1 ratings.
        split: how users and items are cut, see `splitting`; by default 70, 15 and 15 % by a hash of the name. Only
            `ratio` cuts both, or within users.
        kinds: what columns hold, where it is not what they look like.
        shots: support ratings.
        train_shots: the same in training tasks.
        queries: query ratings.
        train_queries: the same in training tasks.
        on_too_few: what becomes of a user with too few ratings: "error", "drop", or "shrink" to ask for fewer.
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
    split = dict(split or DEFAULT_SPLIT)
    if cold in ("both", "none") and "ratio" not in split:
        raise ValueError(f"cold: {cold} is cut by ratio, as in split: {{ratio: [0.7, 0.15, 0.15]}}; got {split}")
    if on_too_few not in get_args(OnTooFew):
        raise ValueError(f"on_too_few must be error, drop or shrink, got {on_too_few!r}")
    if start not in get_args(Start) or (start == "first" and time is None):
        raise ValueError(f"start must be any, or first with a time column to tell which ratings are, got {start!r}")
    if signup_time and time is None:
        raise ValueError("signup_time: true tells when a user first rated, and needs a time column")
    if train_order not in get_args(TrainOrder):
        raise ValueError(f"train_order must be given, random or both, got {train_order!r}")
    if target_type not in ("number", "levels"):
        raise ValueError(f"target_type must be number or levels, got {target_type!r}")
    if rating is None and cold in ("items", "both"):
        raise ValueError("clicks on new items cannot be told from no click on known ones: give cold: users or none")
    given, how = dict(kinds or {}), Reading(**(reading or {}))
    more = [split["column"]] if "column" in split else []
    named = [name for name in (user, item, rating, time) if name]
    found = opened(path, how, [*named, *more])
    scores = np.ones(len(found)) if rating is None else found.numbers(rating)
    if rating is not None:
        found.missing(rating, np.isnan(scores), "a row needs one")
    times = times_of(found, time, given) if time else None
    order = None if times is None else np.argsort(times.values, kind="stable")
    for name in (user, item):
        found.missing(name, found.keys(name).is_null().to_numpy(), "a row needs one")
    described = {
        name: Features.open(table, how, name, given, found, title if name == item else None)
        for name, table in ((user, users), (item, items))
        if table is not None
    }
    if title is not None and item not in described:
        raise ValueError(f"title: {title!r} is a column of items, and there are none")
    found.settle(bad_rows)
    found.release(user, item, *more)
    of_users, of_items, owner, number = _grouped(found, user, item, order)
    if (again := _repeated(owner, number, len(of_items.names))).any():
        again = _at(of_users.flat[again], len(found))
        if rating is None:  # a second click tells no more than the first
            found.bad(item, again, "was clicked before")
        else:
            found.bad(item, again, "is rated a second time by the same user; keep one rating")
        found.settle("drop" if rating is None else bad_rows)
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
    counts = np.bincount(number[train], minlength=len(of_items.names))
    known = np.flatnonzero(counts)
    numbers = np.zeros(len(of_items.names), np.int32)  # 0: no training rating
    numbers[known] = 1 + np.arange(len(known))
    scale = _scale(scores, train, target_type, found, rating)
    stands = ItemMean.of(owner, numbers[number] - 1, scores, train, scale["std"]) if item_mean_feature else None
    sides = {}
    for name, members, places, names in (
        (user, np.unique(owner[train]), owner, of_users.names),
        (item, known, number, of_items.names),
    ):
        if name in described:
            sides[name] = described[name].fit(names, members, places)
    came = None
    if signup_time and time and times is not None:
        first_U = times.values[flat[of_users.sizes.cumsum() - of_users.sizes]]
        came = SignupTime.of(time, times.format or times.kind, first_U[np.unique(owner[train])])
    preprocessor = RatingPreprocessor(
        item=item,
        rating=rating,
        **scale,
        like=float(np.median(scores[train])) if like is None else float(like),
        items=tuple(of_items.names[place] for place in known),
        counts=tuple(counts[known].tolist()),
        totals=tuple(map(float, stands.total)) if stands else (),
        signup_time=came,
        titles=described[item].titled(of_items.names, known) if title is not None else (),
        item_columns=sides[item].columns if item in sides else None,
        user_columns=sides[user].columns if user in sides else None,
        catalogue=sides[item].features(sides[item].of_known) if item in sides else None,
        reading=how,
    )
    examples = RatingDataset(
        numbers[number],
        preprocessor.targets(scores),
        len(preprocessor.levels),
        sides.get(item),
        UserFeatures(of_users.sizes.cumsum(), sides.get(user), came.encode(first_U) if came else None),
        stands,
    )
    return RatingTasks(
        examples, pools, of_users, preprocessor, shots=shots, train_shots=train_shots, queries=queries,
        train_queries=train_queries, negatives=(negatives, negatives if query_negatives is None else query_negatives),
        ordered=time is not None, start=start, train_order=train_order, user_sampling_power=user_sampling_power,
        on_too_few=on_too_few, cold=cold, left_out=left_out_of(found), seed=seed,
    )  # fmt: skip


def _scale(scores: np.ndarray, train: np.ndarray, target_type: str, found: Table, rating: str | None) -> dict[str, Any]:
    """What the training ratings say of the scale: its mean, its spread, its ends, its levels if these are asked for."""
    if rating is None:
        return {"mean": 0.5, "std": 0.5, "low": 0.0, "high": 1.0, "levels": (0.0, 1.0)}
    mean, std = moments(scores, train)
    values = np.unique(scores[train])
    levels: tuple[float, ...] = ()
    if target_type == "levels":
        levels = tuple(values.tolist())
        if not 2 <= len(levels) <= MOST_LEVELS:
            raise ValueError(
                f"{found.path}: target_type: levels needs ratings of 2 to {MOST_LEVELS} different values, and the "
                f"training ratings have {len(levels)}; give target_type: number"
            )
        if not (there := np.isin(scores, levels)).all():
            raise ValueError(
                f"{found.path}, column {rating!r}: {scores[~there][0]:g} is none of the values of the training "
                f"ratings, {', '.join(f'{level:g}' for level in levels)}; mend it, or give target_type: number"
            )
    return {"mean": mean, "std": std or 1.0, "low": float(values[0]), "high": float(values[-1]), "levels": levels}


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


class Log(NamedTuple):
    """Ratings as columns (n,): the numbers of user and item, and the rating as it was given."""

    users: np.ndarray
    items: np.ndarray
    scores: np.ndarray


class RatingTasks(TaskSource):
    """Tasks of `ratings`.

    Attributes:
        user_names: for each split the users whose tasks it has.
        examples: the ratings, users end to end.
        by_turns: whether every other training task keeps to the time.
        in_turn: whether task number k of val and test is of user k, counted round; else users are drawn.
        dropped: what was left out: reason to count.
    """

    preprocessor: RatingPreprocessor

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
        cold: Cold,
        left_out: Mapping[str, int],
        seed: int,
    ) -> None:
        self.queries = _sizes(queries, train_queries, "queries")
        clicks = preprocessor.rating is None
        if clicks and min(negatives) < 1:
            raise ValueError(f"clicks need at least 1 item not clicked for each, got negatives {negatives}")
        each = dict.fromkeys(SPLITS, negatives[1]) | {"train": negatives[0]}
        self.negatives = {split: (negatives[0], each[split]) if clicks else (0, 0) for split in SPLITS}
        self.examples, self.preprocessor, self.objective = examples, preprocessor, preprocessor.objective
        self.on_too_few, self.cold, self.seed = on_too_few, cold, seed
        self.ordered = dict.fromkeys(SPLITS, ordered) | {"train": ordered and train_order != "random"}
        self.by_turns = ordered and train_order == "both"
        self.in_turn = start == "first"
        self._bounds = np.concatenate([[0], users.sizes.cumsum()])
        self._sides, self._names, self._left_out = dict(sides), users.names, left_out
        self._train_shots, self._user_sampling_power = train_shots, float(user_sampling_power)
        self._set_shots(shots)

    def _set_shots(self, shots: Size) -> None:
        """Set the number of shots, and keep the users with enough ratings for it."""
        self.shots = _sizes(shots, self._train_shots, "shots")
        self.dropped: dict[str, int] = {}
        self._users = {split: self._able(split) for split in self._sides}
        self.dropped |= self._left_out
        counts = np.diff(self._sides["train"].query.bounds)[self._users["train"]] ** self._user_sampling_power
        self._drawn = counts.cumsum() / counts.sum() if self._user_sampling_power else None
        self.user_names = {split: tuple(self._names[user] for user in own) for split, own in self._users.items()}

    def with_shots(self, shots: int) -> RatingTasks:
        """The same tasks with other shots in val and test, and in training where `train_shots` were not given."""
        other = copy(self)
        other._set_shots(shots)
        return other

    @property
    def owners(self) -> np.ndarray:
        """int32 (n,), the number of each rating's user."""
        return np.repeat(np.arange(len(self._bounds) - 1, dtype=np.int32), np.diff(self._bounds))

    def counts(self, split: Split) -> dict[str, int]:
        """The users of a split: name to how many of their ratings a query can ask for."""
        asked = np.diff(self._sides[split].query.bounds)[self._users[split]]
        return dict(zip(self.user_names[split], asked.tolist()))

    def training_log(self) -> Log:
        """The ratings that training tasks are made of."""
        support, query = self._sides["train"]
        rows = support.rows if self._sides["train"].same else np.union1d(support.rows, query.rows)
        return Log(self.owners[rows], self.examples.items[rows], self.preprocessor.scores(self.examples.targets[rows]))

    def task(self, split: Split, index: int) -> Task:
        return tree_map(lambda leaf: leaf[0], self.stack(split, [index]))

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        if split not in self._sides:
            raise ValueError(f"these ratings have no {split!r} split, only {', '.join(self._sides)}")
        if split != "train" or not self.by_turns:
            return self._stack(split, indices, self.ordered[split])
        turns = [[index for index in indices if index % 2 == odd] for odd in (0, 1)]
        stacks = [self._stack(split, own, ordered=not odd) for odd, own in enumerate(turns) if own]
        places = np.argsort(np.argsort([index % 2 for index in indices], kind="stable"), kind="stable")
        return tree_map(lambda *leaves: torch.cat(leaves)[places], *stacks)

    def _stack(self, split: Split, indices: Sequence[int], ordered: bool) -> Task:
        """Tasks, those of training in the order of time or not."""
        (support, query), S, Q = self._sides[split], self.shots[split].high, self.queries[split].high
        extra = [(S * self.negatives[split][0]), (Q * self.negatives[split][1])]
        wanted = 4 + 2 * (S + Q) + 2 * sum(extra)
        draws = np.stack([generator(self.seed, split, index).random(wanted) for index in indices])
        of_user, of_shots, of_queries, of_start = draws[:, :4].T
        user_T = self._users[split][self._places(split, indices, of_user)]
        shots_T, queries_T = self.shots[split].at(of_shots), self.queries[split].at(of_queries)
        chosen, asked = draws[:, 4 : 4 + 2 * S].reshape(-1, 2, S), draws[:, 4 + 2 * S : 4 + 2 * (S + Q)]
        asked = asked.reshape(-1, 2, Q)
        has_S, has_Q = (np.diff(side.bounds)[user_T] for side in (support, query))
        if self.in_turn and ordered:
            after_T = self._after(split, user_T, shots_T)
            queries_T = np.minimum(queries_T, has_Q - after_T)
            places_S = np.broadcast_to(np.arange(S), (len(user_T), S))
            places_Q = after_T[:, None] + distinct(asked, has_Q - after_T, queries_T)
        elif ordered:
            least_T = self._after(split, user_T, np.full(len(user_T), S))  # the first that has enough before it
            queries_T = np.minimum(queries_T, has_Q - least_T)
            start_T = least_T + (of_start * (has_Q - np.minimum(Q, has_Q - least_T) - least_T + 1)).astype(np.int64)
            before_T = self._before(split, query.bounds[user_T] + start_T, user_T)
            places_S, places_Q = (before_T - shots_T)[:, None] + np.arange(S), start_T[:, None] + np.arange(Q)
        elif self._sides[split].same:
            queries_T = np.minimum(queries_T, has_S - S)
            places = distinct(draws[:, 4 : 4 + 2 * (S + Q)].reshape(-1, 2, S + Q), has_S, np.minimum(S + Q, has_S))
            places_S, places_Q = places[:, :S], places[:, S:]
        else:
            queries_T = np.minimum(queries_T, has_Q)
            places_S, places_Q = distinct(chosen, has_S), distinct(asked, has_Q, np.minimum(Q, has_Q))
        unclicked = self._unclicked(user_T, draws[:, 4 + 2 * (S + Q) :], sum(extra))
        batches = []
        for side, places, count_T, items, each in (
            (support, places_S, shots_T, unclicked[:, : extra[0]], self.negatives[split][0]),
            (query, places_Q, queries_T, unclicked[:, extra[0] :], self.negatives[split][1]),
        ):
            real = np.arange(places.shape[1]) < count_T[:, None]
            rows = side.rows[side.bounds[user_T][:, None] + np.where(real, places, places[:, :1])]
            inputs, targets = self.examples.take(rows)
            if each:
                more = self.examples.unclicked(items, rows[:, 0])
                inputs = {name: torch.cat([inputs[name], more[name]], 1) for name in inputs}
                targets = torch.cat([targets, 1 - targets[:, :1].expand(-1, items.shape[1], -1)], 1)
                real = np.concatenate([real, np.arange(items.shape[1]) < each * count_T[:, None]], 1)
            batches.append(Batch(inputs, targets, torch.from_numpy(real.astype(np.float32))))
        return Task(*batches)

    def subjects(self, split: Split, indices: Sequence[int]) -> np.ndarray:
        """The user of each task, by their place in `user_names`."""
        first = np.array([generator(self.seed, split, index).random() for index in indices])
        return self._places(split, indices, first)

    def describe(self) -> dict[str, Any]:
        return {
            "source": "ratings",
            "shots": self.shots["test"].plain(),
            "train_shots": self.shots["train"].plain(),
            "queries": self.queries["test"].plain(),
            "train_queries": self.queries["train"].plain(),
            "cold": self.cold,
            "order": "the first ratings" if self.in_turn else "given" if self.ordered["test"] else "random",
            "train_order": "both" if self.by_turns else "given" if self.ordered["train"] else "random",
            **({"negatives": list(self.negatives["test"])} if self.preprocessor.rating is None else {}),
            "seed": self.seed,
            "ratings": len(self.examples),
            "users": {split: len(names) for split, names in self.user_names.items()},
            **self.preprocessor.describe(),
            **({"dropped": self.dropped} if self.dropped else {}),
        }

    def _places(self, split: Split, indices: Sequence[int], of_user: np.ndarray) -> np.ndarray:
        """The users (T,) of tasks, among those of a split, by a random number (T,) each."""
        count = len(self._users[split])
        if self.in_turn and split != "train":
            return np.array(indices) % count
        if split == "train" and self._drawn is not None:
            return np.minimum(self._drawn.searchsorted(of_user, side="right"), count - 1)
        return (of_user * count).astype(np.int64)

    def _unclicked(self, users: np.ndarray, draws: np.ndarray, count: int) -> np.ndarray:
        """Numbers (T, N) of different items of training that each user (T,) never touched, in any split."""
        if not count:
            return np.zeros((len(users), 0), np.int64)
        own = [self._own(user) for user in users]
        left = np.array([len(self.preprocessor.items) - len(items) for items in own])
        found = distinct(draws.reshape(-1, 2, count), left)
        for row, items in zip(found, own):  # the k-th of the others: as many more as there are own ones below it
            row += 1 + np.searchsorted(items - 1 - np.arange(len(items)), row, side="right")
        return found

    def _own(self, user: int) -> np.ndarray:
        """The numbers of the items of training that a user touched, rising."""
        numbers = np.sort(self.examples.items[self._bounds[user] : self._bounds[user + 1]])
        return numbers[numbers.searchsorted(1) :].astype(np.int64)

    def _before(self, split: Split, places: np.ndarray, users: np.ndarray) -> np.ndarray:
        """How many support ratings of its user come before each place among the queries."""
        support, query = self._sides[split]
        if self._sides[split].same:
            return places - query.bounds[users]
        return support.rows.searchsorted(query.rows[places]) - support.bounds[users]

    def _after(self, split: Split, users: np.ndarray, shots: np.ndarray) -> np.ndarray:
        """The place of the first query rating of each user (T,) that comes after their first `shots` (T,) ratings."""
        support, query = self._sides[split]
        if self._sides[split].same:
            return shots
        last = support.rows[support.bounds[users] + shots - 1]  # the row that completes a support
        return query.rows.searchsorted(last) - query.bounds[users]

    def _able(self, split: Split) -> np.ndarray:
        """The users of a split with enough ratings for a task."""
        (support, query), shots, queries = self._sides[split], self.shots[split].high, self.queries[split].high
        least = 1 if self.on_too_few == "shrink" else queries
        has_U, asked_U = np.diff(support.bounds), np.diff(query.bounds)
        able = np.flatnonzero(has_U >= shots)
        left_U = np.full(len(has_U), -1)
        if not self.ordered[split] and not self._sides[split].same:
            left_U[able] = asked_U[able]
        else:
            left_U[able] = asked_U[able] - self._after(split, able, np.full(len(able), shots))
        enough = left_U >= least
        there = asked_U > 0
        short = np.flatnonzero(there & ~enough)
        if len(short) and self.on_too_few == "error":
            user = int(short[0])
            in_order = " in this order" if self.ordered[split] else ""
            raise ValueError(
                f"ratings: user {self._names[user]!r} in {split} has {has_U[user]} ratings to support and "
                f"{asked_U[user]} to query, too few for {shots} shots + {queries} queries{in_order}; lower shots or "
                "queries, ask for fewer of such users by on_too_few: shrink, or leave them out by on_too_few: drop "
                f"({len(short):,} in {split})"
            )
        if len(short):
            self.dropped[f"users in {split} with too few ratings"] = len(short)
        users = np.flatnonzero(enough)
        if not enough.any():
            raise ValueError(f"ratings: no user in {split} has enough ratings for {shots} shots + {queries} queries")
        each = self.negatives[split]
        needed, items = shots * each[0] + queries * each[1], len(self.preprocessor.items)
        if needed:
            most = max(len(self._own(user)) for user in users)
            if items - most < needed:
                raise ValueError(
                    f"ratings: {needed} items not clicked are needed for a task of {split}, but of {items} items a "
                    f"user clicked {most}; lower shots, queries or negatives"
                )
        return users


def ratings_of(source: TaskSource) -> RatingTasks | None:
    """The tasks of ratings that a source is, watched or not; None if it is of something else."""
    inner = getattr(source, "source", source)
    return inner if isinstance(inner, RatingTasks) else None


def _sizes(size: Size, train: Size | None, name: str) -> dict[Split, Range]:
    """How large the tasks of each split are."""
    asked = Range.of(size, name, 1)
    return dict.fromkeys(SPLITS, asked) | {"train": asked if train is None else Range.of(train, f"train_{name}", 1)}


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
