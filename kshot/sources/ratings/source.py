"""Tasks from ratings or clicks: a task is a user, whose ratings predict those of other items.

Data are columns: an item number, a rating and a row number per rating, so that 20 million ratings fit in 4 GB.

Shape legend: n ratings, U users, I items, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kshot.annotations import EMPTY, Fraction, NonNegativeInt, PositiveInt, Size
from kshot.argument_checks import check_arguments
from kshot.data.tables.frames import TableLike
from kshot.data.tables.moments import moments
from kshot.data.tables.table import Reading, ReadingOptions, Table
from kshot.sources.ratings.dataset import Features, RatingDataset, UserFeatures, opened
from kshot.sources.ratings.factors import ItemFactors
from kshot.sources.ratings.pools import pools_of
from kshot.sources.ratings.preprocessor import ItemMean, RatingPreprocessor, SignupTime
from kshot.sources.ratings.tasks import RatingTasks, Start, TrainOrder
from kshot.sources.rows import BadRows, Members, distinct_values, group_rows, left_out_of, times_of
from kshot.supplied import Seed
from kshot.tasks.pool import OnTooFew
from kshot.tasks.sampling import shots_for
from kshot.tasks.splitting import DEFAULT_SPLIT, cut
from kshot.types import Split

Cold = Literal["users", "items", "both", "none"]
"""What is unseen in val and test: users, items, both; or only later ratings of the same users."""

TargetType = Literal["regression", "ordinal"]

MOST_LEVELS = 32


@check_arguments
def ratings(
    path: Path | str | Table | TableLike,
    *,
    user: str = "user",
    item: str = "item",
    rating: str | None = "rating",
    time: str | None = None,
    users: Path | str | Table | TableLike | None = None,
    items: Path | str | Table | TableLike | None = None,
    title: str | None = None,
    target_type: TargetType = "regression",
    like: float | None = None,
    item_mean_feature: bool = False,
    item_factors: NonNegativeInt = 0,
    signup_time: bool = False,
    negatives: PositiveInt = 4,
    query_negatives: PositiveInt | None = None,
    cold: Cold = "users",
    start: Start = "any",
    train_order: TrainOrder = "given",
    user_sampling_power: Fraction = 0.0,
    split: Mapping[str, Any] = DEFAULT_SPLIT,
    kinds: Mapping[str, str] = EMPTY,
    shots: Size | None = None,
    train_shots: Size | None = None,
    queries: Size = 10,
    train_queries: Size | None = None,
    on_too_few: OnTooFew = "error",
    reading: ReadingOptions = EMPTY,
    bad_rows: BadRows = "error",
    seed: Seed = 0,
) -> RatingTasks:
    r"""Predict a user's ratings from a few of them.

    Ratings are standardised by the training ratings; metrics are in their own units. Inputs are a dict of

    - `item`: int64 (n,), item numbers; 0 stands for all items without training ratings,
    - `item_mean`, optional: float32 (n, 2), the item's deviation from the mean in training ratings of other users, in
      standard deviations, shrunk as by 5 ratings at the mean and as by 1,
    - `item_factors`, optional: float32 (n, 33 + `item_factors`), the item's popularity and factors whose inner products
      are large for items of the same users; those of training users are fitted without them, see `factors.ItemFactors`,
    - `item_features`, `user_features`: float32 (n, F), the columns of `items` and `users` if given, encoded as in
      `table`; the latter end with 10 features of the signup time if `signup_time` is set.

    What is unseen in val and test:

    - `cold: users`: users are split, with all their ratings.
    - `cold: items`: items are split. Supports contain training items only, queries items of the split.
    - `cold: both`: both are split: unseen users, queried on unseen items from ratings of training items.
    - `cold: none`: the ratings of each user are split, in the order of time if there is one: queries are of the split,
      supports from before it.

    With `time`, the support consists of the user's latest ratings before the first of the query, and the query of those
    that follow; without it, both are random. `start: first` makes tasks of new users: the support consists of their
    first ratings, the query of random later ones, and val and test enumerate the users.

    Without a rating, rows are clicks or other interactions. The examples of a task are these, and `negatives` items per
    click that the user never touched, drawn uniformly from the training items. Clicks on other items are left out: none
    of them could be recommended, and that an item is unknown would say that it was clicked. Targets are one-hot (n, 2),
    the second class being a click.

    Args:
        path: a table, in a file or in memory, with a row per rating.
        user, item, rating, time: its columns; None for `rating` if rows are clicks.
        users, items: tables of features with a row per user or item, named by the same column.
        title: the column of `items` with display names, which is no feature.
        target_type: "regression" of standardised ratings; or "ordinal", if ratings have few values: targets are one-hot
            (n, L), and predictions distributions over the values, see `objectives.levels`.
        like: the rating from which on an item is liked, for precision and recall; by default the median.
        item_mean_feature: add the input `item_mean`. The ratings of a training task are excluded from it, so that its
            reliability is the same in training as for new users.
        item_factors: number of factors of EASE in the input `item_factors`, beside 32 of implicit ALS, for the learner
            `item_similarity`; 0: no such input.
        signup_time: add the time of a user's first rating to `user_features`, as its position in each tenth of the
            signup times of training users: what and how people rate changes over the years.
        negatives, query_negatives: number per click; the latter, `negatives` by default, for queries of val and test.
        cold, start: see above.
        train_order: "random" draws training tasks from all ratings of a user in any order of time: more tasks, of a
            slightly different distribution. "both" alternates. Val and test tasks keep to the time.
        user_sampling_power: p, for training tasks of a user of $n$ ratings in proportion to $n^p$; 0 samples users
            uniformly, 1 ratings.
        shots, train_shots, queries, train_queries: number of ratings, also in training tasks; shots are by default 10,
            or half the ratings of the median user if these are fewer.
        split, kinds, reading, seed: as in `table`. Only a split by `ratio` splits both, or within users.
        on_too_few: treatment of users with too few ratings: "error", "drop", or "shrink" to use fewer queries.
        bad_rows: "error", or "drop" to leave out rows without a value, or of a user or item without features.

    Raises:
        ValueError: an error in a file, with line and column; a user or item that is rated or described twice; users
            with too few ratings.

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
        In MeLU's scenarios of new items, supports contain new items too; here they contain training items only, like
        the history of a user when an item is released.
    """
    split, kinds, format = dict(split or DEFAULT_SPLIT), dict(kinds or {}), Reading(**(reading or {}))
    if cold in ("both", "none") and "ratio" not in split:
        raise ValueError(f"cold: {cold} is cut by ratio, as in split: {{ratio: [0.7, 0.15, 0.15]}}; got {split}")
    if time is None and (start == "first" or signup_time):
        raise ValueError(f"{'start: first' if start == 'first' else 'signup_time: true'} needs a time column")
    if rating is None and cold in ("items", "both"):
        raise ValueError("clicks on new items look like no clicks on known ones: give cold: users or none")
    split_columns = [split["column"]] if "column" in split else []
    table = opened(path, format, [*(name for name in (user, item, rating, time) if name), *split_columns])
    scores = np.ones(len(table)) if rating is None else table.numbers(rating)
    if rating is not None:
        table.missing(rating, np.isnan(scores), "a row needs one")
    times = times_of(table, time, kinds) if time else None
    order = None if times is None else np.argsort(times.values, kind="stable")
    for name in (user, item):
        table.missing(name, table.keys(name).is_null().to_numpy(), "a row needs one")
    features = {
        name: Features.read(opened(of_side, format), name, kinds, table, title if name == item else None)
        for name, of_side in ((user, users), (item, items))
        if of_side is not None
    }
    if title is not None and item not in features:
        raise ValueError(f"title: {title!r} is a column of items, and there are none")
    table.settle(bad_rows)
    table.release(user, item, *split_columns)
    by_user, by_item, user_of, item_of = _grouped(table, user, item, order)
    if (repeated := _repeated(user_of, item_of, len(by_item.names))).any():
        mask = np.zeros(len(table), bool)
        mask[by_user.flat[repeated]] = True
        clicked, rated = "was clicked before", "is rated a second time by the same user; keep one rating"
        table.bad(item, mask, clicked if rating is None else rated)
        table.settle("drop" if rating is None else bad_rows)  # a second click carries no information
        by_user, by_item, user_of, item_of = _grouped(table, user, item, order)
    flat = by_user.flat  # the ratings, ordered by user, then by time
    pools = pools_of(
        by_user.sizes, user_of, item_of,
        users=_cut(by_user, split, "user", table) if cold in ("users", "both") else None,
        items=_cut(by_item, split, "item", table) if cold in ("items", "both") else None,
        ratio=split["ratio"] if cold == "none" else None, ordered=time is not None,
    )  # fmt: skip
    train = np.zeros(len(flat), bool)
    for side in pools["train"]:
        train[side.rows] = True
    if not train.any():
        few = " with cold: none each user's ratings are divided by the ratio of the split;" if cold == "none" else ""
        raise ValueError(
            f"{table.path}: no rating is left for training:{few} give users more ratings, or a larger share to train"
        )
    scores = scores[flat]
    counts = np.bincount(item_of[train], minlength=len(by_item.names))
    known_items = np.flatnonzero(counts)
    left_out = dict(left_out_of(table))
    if rating is None and (unknown := counts[item_of] == 0).any():
        pools = {part: sides.of_rows(~unknown) for part, sides in pools.items()}
        left_out["clicks on items without a training click"] = int(unknown.sum())
    numbers = np.zeros(len(by_item.names), np.int32)  # 0: no training rating
    numbers[known_items] = 1 + np.arange(len(known_items))
    scale = _scale(scores, train, target_type, table, rating)
    item_mean = ItemMean.fit(user_of, numbers[item_of] - 1, scores, train, scale["std"]) if item_mean_feature else None
    factors = None
    if item_factors:
        factors = ItemFactors.fit(user_of, numbers[item_of], train, len(known_items), item_factors)
    train_users = np.unique(user_of[train])
    of_user = features[user].fit(by_user.names, train_users, user_of) if user in features else None
    has_features = item in features and features[item].raw  # a table of titles alone has none
    of_item = features[item].fit(by_item.names, known_items, item_of) if has_features else None
    signup = None
    if signup_time and time and times is not None:
        first_U = times.values[flat[by_user.sizes.cumsum() - by_user.sizes]]
        signup = SignupTime.fit(time, times.format or times.kind, first_U[train_users])
    preprocessor = RatingPreprocessor(
        item=item, rating=rating, **scale, signup_time=signup, reading=table.reading,
        like=float(np.median(scores[train])) if like is None else float(like),
        items=tuple(by_item.names[number] for number in known_items),
        counts=tuple(counts[known_items].tolist()),
        totals=tuple(map(float, item_mean.total)) if item_mean else (),
        titles=features[item].titled(by_item.names, known_items) if title is not None else (),
        item_columns=of_item.columns if of_item else None, user_columns=of_user.columns if of_user else None,
        catalogue=of_item.features(of_item.of_known) if of_item else None,
        item_factors=factors.tables[-1] if factors else None,
    )  # fmt: skip
    of_users = UserFeatures(by_user.sizes.cumsum(), of_user, signup.encode(first_U) if signup else None)
    targets = preprocessor.targets(scores)
    examples = RatingDataset(numbers[item_of], targets, len(preprocessor.levels), of_item, of_users, item_mean, factors)
    shots = shots_for(by_user.sizes) if shots is None else shots
    return RatingTasks(
        examples, pools, by_user, preprocessor, shots=shots, train_shots=train_shots, queries=queries,
        train_queries=train_queries, negatives=(negatives, negatives if query_negatives is None else query_negatives),
        ordered=time is not None, start=start, train_order=train_order, user_sampling_power=user_sampling_power,
        on_too_few=on_too_few, cold=cold, left_out=left_out, seed=seed,
    )  # fmt: skip


def _scale(scores: np.ndarray, train: np.ndarray, target_type: str, table: Table, rating: str | None) -> dict[str, Any]:
    """The scale of the training ratings, as arguments of `RatingPreprocessor`."""
    if rating is None:
        return {"mean": 0.5, "std": 0.5, "low": 0.0, "high": 1.0, "levels": (0.0, 1.0)}
    mean, std = moments(scores, train)
    values = np.unique(scores[train])
    levels: tuple[float, ...] = ()
    if target_type == "ordinal":
        levels = tuple(values.tolist())
        if not 2 <= len(levels) <= MOST_LEVELS:
            raise ValueError(
                f"{table.path}: target_type: ordinal needs ratings of 2 to {MOST_LEVELS} different values, and the "
                f"training ratings have {len(levels)}; give target_type: regression"
            )
        if not (known := np.isin(scores, levels)).all():
            listed = ", ".join(f"{level:g}" for level in levels)
            raise ValueError(
                f"{table.path}, column {rating!r}: {scores[~known][0]:g} is none of the values of the training "
                f"ratings, {listed}; correct it, or give target_type: regression"
            )
    return {"mean": mean, "std": std or 1.0, "low": float(values[0]), "high": float(values[-1]), "levels": levels}


def _grouped(
    table: Table, user: str, item: str, order: np.ndarray | None
) -> tuple[Members, Members, np.ndarray, np.ndarray]:
    """The good rows by user and by item; and, in the order of users, the user and item number of each rating."""
    by_item = group_rows(table.keys(item), table.good)
    item_of_row = np.full(len(table), -1, np.int32)
    item_of_row[by_item.flat] = np.repeat(np.arange(len(by_item.names), dtype=np.int32), by_item.sizes)
    by_user = group_rows(table.keys(user), table.good, order)
    user_of = np.repeat(np.arange(len(by_user.names), dtype=np.int32), by_user.sizes)
    return by_user, by_item, user_of, item_of_row[by_user.flat]


def _repeated(user_of: np.ndarray, item_of: np.ndarray, num_items: int) -> np.ndarray:
    """A mask of ratings of an item that the user has rated before: a query could repeat a rating of the support."""
    pairs = user_of.astype(np.int64) * num_items + item_of
    mask = np.zeros(len(pairs), bool)
    if not (np.diff(np.sort(pairs)) > 0).all():
        order = np.argsort(pairs, kind="stable")
        mask[order[1:][np.diff(pairs[order]) == 0]] = True
    return mask


def _cut(members: Members, split: Mapping[str, Any], kind: str, table: Table) -> dict[Split, np.ndarray]:
    """For each split, a mask (members,) of its members."""
    values = distinct_values(members, table, split["column"]) if "column" in split else None
    parts = cut(members.names, split, kind=kind, values=values)
    return {part: np.isin(members.names, names) for part, names in parts.items()}
