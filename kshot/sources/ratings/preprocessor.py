"""The preprocessor of ratings: items and their features, and the scale of ratings.

Shape legend: n ratings, I items, L levels.
"""

from __future__ import annotations

import base64
import dataclasses
import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.data.tables.columns import Columns, Raw, place_of, read_columns
from kshot.data.tables.frames import TableLike
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Reading, Table
from kshot.data.text.files import words_of
from kshot.objectives import Objective
from kshot.tasks.preprocessor import Preprocessor, Support
from kshot.types import Tree


class ItemMean(NamedTuple):
    """The mean of each item in training ratings, after subtracting the means of users.

    Attributes:
        total, counts: sum (I,) of the ratings minus the means of their users, in standard deviations, and their number.
        residuals: float32 (n,), the summand of each rating; 0 for those that are not of training.
    """

    total: np.ndarray
    counts: np.ndarray
    residuals: np.ndarray

    @classmethod
    def fit(
        cls, user_of: np.ndarray, item_of: np.ndarray, scores: np.ndarray, train: np.ndarray, std: float
    ) -> ItemMean:
        """Fit to the training ratings of a mask (n,) by alternating between means of users and of items."""
        users, items = user_of[train], item_of[train]
        standardised = ((scores[train] - scores[train].mean()) / std).astype(np.float32)
        user_counts, item_counts = np.bincount(users) + 5, np.bincount(items)
        item_means = np.zeros(len(item_counts))
        for _ in range(5):
            user_means = np.bincount(users, standardised - item_means[items]) / user_counts
            item_means = np.bincount(items, standardised - user_means[users]) / (item_counts + 5)
        residuals = np.zeros(len(scores), np.float32)
        residuals[train] = standardised - user_means[users]
        return cls((item_means * (item_counts + 5)).astype(np.float32), item_counts, residuals)

    def features(self, items: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """float32 (..., 2) for item numbers (...), 0 for unknown items, without the ratings of rows (...) if given."""
        known = items > 0
        index = np.maximum(items, 1) - 1
        residual = np.float32(0) if rows is None else self.residuals[rows]
        total = (self.total[index] - residual) * known
        count = (self.counts[index] - (residual != 0)) * known
        return np.stack([total / (count + 5), total / (count + 1)], -1).astype(np.float32)


def missing_features(columns: Columns, count: int) -> np.ndarray:
    """The features (count, F) of rows without a value in any column."""
    import polars as pl

    words, numbers = Raw("category", pl.Series([None] * count, dtype=pl.String)), Raw("number", np.full(count, np.nan))
    raw = {name: words if kind in WORDS else numbers for name, kind in columns.kinds.items()}
    return columns.spread(columns.encode(raw))


WORDS = ("category", "set", "text")
"""The kinds of columns whose values are words."""

NUM_TENTHS = 10


class SignupTime(NamedTuple):
    """Encodes the time of a user's first rating by its position between the deciles (11,) of those of training users.

    Later times than all of these are encoded as ones, like new users of today.
    """

    column: str
    kind: str
    edges: tuple[float, ...]

    @classmethod
    def fit(cls, column: str, kind: str, first: np.ndarray) -> SignupTime:
        """Fit to the signup times (U,) of training users."""
        return cls(column, kind, tuple(np.quantile(first, np.linspace(0, 1, NUM_TENTHS + 1)).tolist()))

    def encode(self, first: np.ndarray) -> np.ndarray:
        """float32 (..., 10) in 0 … 1 for signup times (...)."""
        edges = np.array(self.edges)
        width = np.maximum(np.diff(edges), 1e-9)
        return ((first[..., None] - edges[:-1]) / width).clip(0, 1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class RatingPreprocessor(Preprocessor):
    """Converts rows of ratings into inputs and targets. Features are columns of the same file.

    Attributes:
        item, rating, like, reading: as in `ratings`.
        mean, std, low, high: of the training ratings.
        levels: the distinct training ratings of an ordinal target; 0 and 1 for clicks.
        items, titles: names of the items with training ratings, `items[k]` of number k + 1; display names, if known.
        counts, totals: number of training ratings of each; of their `ItemMean`, if it is an input.
        item_columns, user_columns: the columns of features, if any.
        catalogue: float32 (I, F), the features of `items`, so that files need not repeat them.
        item_factors: float32 (I + 1, 1 + D + 32), the input `item_factors` of each item number, if it is an input.
    """

    item: str
    rating: str | None
    mean: float
    std: float
    low: float
    high: float
    levels: tuple[float, ...]
    like: float
    items: tuple[str, ...]
    counts: tuple[int, ...]
    totals: tuple[float, ...]
    signup_time: SignupTime | None
    titles: tuple[str, ...]
    item_columns: Columns | None
    user_columns: Columns | None
    catalogue: np.ndarray | None
    item_factors: np.ndarray | None
    reading: Reading

    @property
    def objective(self) -> Objective:
        if self.levels:
            return objectives.levels(self.levels, self.mean, self.std, self.like)
        return objectives.rating(self.mean, self.std, self.low, self.high, self.like)

    def targets(self, scores: np.ndarray) -> np.ndarray:
        """Ratings (n,) as stored: standardised, or the numbers of their levels."""
        if self.levels:
            return np.searchsorted(np.array(self.levels) - 1e-9, scores, side="right").astype(np.int8) - 1
        return ((scores - self.mean) / self.std).astype(np.float32)

    def scores(self, targets: np.ndarray) -> np.ndarray:
        """The inverse of `targets`."""
        return np.array(self.levels)[targets] if self.levels else targets * self.std + self.mean

    def support(self, path: Path | TableLike) -> Support:
        """The ratings of one user; the signup time is kept if the table has a column of times."""
        table, inputs = self._read(path, [self.rating] if self.rating else [], {})
        kept = {} if self.signup_time is None else {"came": self._signup_time(table)}
        names = self._named(table.labels(self.item))
        table.bad(self.item, (names.is_duplicated() & names.is_not_null()).to_numpy(), "is there twice; keep one row")
        if self.rating is None:
            table.settle()
            return Support(inputs, torch.eye(2)[1].repeat(len(table), 1), kept)
        scores = table.numbers(self.rating)
        table.missing(self.rating, np.isnan(scores), "a support row needs one")
        errors = np.array(["" if np.isnan(score) else self.error_of(score) for score in scores.tolist()], object)
        for error in dict.fromkeys(errors):
            if error:
                table.bad(self.rating, errors == error, error)
        table.settle()
        return Support(inputs, self.batch_targets(scores), kept)

    def all_items(self, user_features: Tensor | None = None) -> Tree:
        """Inputs for all training items (I, ...), in order, with the features (1, F) of the user, if users have any."""
        return self._of_items(np.arange(len(self.items)), user_features)

    def support_of(self, ratings: Mapping[str, float]) -> Support:
        """A user's ratings of training items, by name or unique title; ValueError if unknown, or out of the scale."""
        by_name = {name: number for number, name in enumerate(self.items)}
        by_title = {title: by_name[name] for title, name in self._titled.items()}
        numbers = []
        for name, score in ratings.items():
            number = by_name.get(name, by_title.get(name))
            if number is None:
                close = difflib.get_close_matches(name, [*by_title, *by_name][:100_000], 1)
                raise ValueError(f"no item is named {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
            if error := self.error_of(score):
                raise ValueError(f"the rating of {name!r}, {score:g}, {error}")
            numbers.append(number)
        if len(set(numbers)) < len(numbers):
            raise ValueError("an item is rated twice; keep one rating")
        inputs = self._of_items(np.array(numbers, np.int64), None)
        return Support(inputs, self.batch_targets(np.array(list(ratings.values()), float)), {})

    def error_of(self, score: float) -> str:
        """A message if a rating is invalid, else empty."""
        if not self.low <= score <= self.high:
            return f"is out of the scale of the training ratings, {self.low:g} to {self.high:g}"
        if self.levels and score not in self.levels:
            return f"is none of {', '.join(f'{level:g}' for level in self.levels)}"
        return ""

    def batch_targets(self, scores: np.ndarray) -> Tensor:
        """Ratings (n,) as targets of a batch: one-hot (n, L), or standardised (n, 1)."""
        targets = torch.from_numpy(self.targets(scores))
        return torch.eye(len(self.levels))[targets.long()] if self.levels else targets[:, None]

    def inputs(self, path: Path | TableLike, kept: dict[str, Any]) -> Tree:
        """Items to predict for."""
        table, inputs = self._read(path, [], kept)
        table.settle()
        return inputs

    def expected(self, prediction: Tree) -> Tensor:
        """The expected rating (n,) under a prediction; the probability of a click."""
        if isinstance(prediction, dict):
            prediction = prediction["mean"]
        if self.levels:
            return prediction.double().softmax(-1) @ torch.tensor(self.levels, dtype=torch.float64)
        return (prediction[:, 0].double() * self.std + self.mean).clamp(self.low, self.high)

    def answers(self, prediction: Tensor, kept: dict[str, Any]) -> dict[str, list[Any]]:
        scores = self.expected(prediction)
        rows = {"row": list(range(1, len(scores) + 1)), self.rating or "chance": scores.tolist()}
        if not self.levels or self.rating is None:
            return rows
        probabilities = prediction.softmax(-1)
        return rows | {f"p({level:g})": column.tolist() for level, column in zip(self.levels, probabilities.T)}

    def describe(self) -> dict[str, Any]:
        about: dict[str, Any] = {"inputs": {self.item: f"the number of one of {len(self.items):,} items, or 0"}}
        for columns in (self.item_columns, self.user_columns):
            about["inputs"] |= columns.describe() if columns else {}
        if self.signup_time is not None:
            about["inputs"] |= {self.signup_time.column: "of a user's first rating, by tenths of the training users"}
        if self.rating is None:
            return about | {"target": "whether an item was clicked"}
        if self.levels:
            return about | {"target": f"{self.rating}: one of {', '.join(f'{level:g}' for level in self.levels)}"}
        return about | {"target": f"{self.rating}: (y − {self.mean:.4g}) / {self.std:.4g}"}

    def to_json(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("item_columns", "user_columns"):
            fields[name] = fields[name] and fields[name].to_json()
        for name in ("reading", "signup_time"):
            fields[name] = fields[name] and fields[name]._asdict()
        for name in ("catalogue", "item_factors"):
            if (array := fields[name]) is not None:
                content = base64.b64encode(array.tobytes()).decode()
                fields[name] = {"shape": list(array.shape), "base64": content}
        return {"kind": "ratings", **fields}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RatingPreprocessor:
        fields = {name: value for name, value in data.items() if name != "kind"}
        for name in ("item_columns", "user_columns"):
            fields[name] = Columns.from_json(data[name]) if data[name] else None
        for name in ("catalogue", "item_factors"):
            packed = fields.setdefault(name, None)  # runs of before 2.0 have no factors
            if packed is not None:
                content = base64.b64decode(packed["base64"])
                fields[name] = np.frombuffer(content, np.float32).reshape(packed["shape"])
        if (signup_time := data["signup_time"]) is not None:
            fields["signup_time"] = SignupTime(**signup_time | {"edges": tuple(signup_time["edges"])})
        for name in ("levels", "items", "counts", "totals", "titles"):
            fields[name] = tuple(data[name])
        return cls(**fields | {"reading": Reading(**data["reading"])})

    def _numbered(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """The inputs of items (n,) by number, except for their features."""
        inputs = {"item": torch.from_numpy(numbers.astype(np.int64))}
        if self.totals:
            item_mean = ItemMean(np.array(self.totals, np.float32), np.array(self.counts), np.zeros(0, np.float32))
            inputs["item_mean"] = torch.from_numpy(item_mean.features(numbers))
        if self.item_factors is not None:
            inputs["item_factors"] = torch.from_numpy(self.item_factors[numbers])
        return inputs

    def _of_items(self, indices: np.ndarray, user_features: Tensor | None) -> dict[str, Tensor]:
        """The inputs of training items (n,) by index in `items`; those of an unknown user by default."""
        inputs = self._numbered(indices + 1)
        if self.catalogue is not None:
            inputs["item_features"] = torch.tensor(self.catalogue)[indices]
        if user_features is None:
            features = [] if self.user_columns is None else [missing_features(self.user_columns, 1)]
            if self.signup_time is not None:
                features.append(self.signup_time.encode(np.array([np.inf])))
            user_features = torch.from_numpy(np.concatenate(features, 1)) if features else None
        if user_features is not None:
            inputs["user_features"] = user_features.expand(len(indices), -1)
        return inputs

    @cached_property
    def _titled(self) -> dict[str, str]:
        """The name of the item of each title that one item alone has and that is no name."""
        counts = Counter([*self.titles, *self.items])
        named = zip(self.titles, self.items)
        return {title: name for title, name in named if counts[title] == 1}

    def _named(self, words: Any) -> Any:
        """The names of items (polars Series) that are given by name or title."""
        return words.replace(self._titled) if self._titled else words

    def _signup_time(self, table: Table) -> float | None:
        """The time of the first rating in a file; None if it has no column of times."""
        assert self.signup_time is not None
        column = self.signup_time.column
        if column not in table.frame.columns:
            return None
        (raw,) = read_columns(table, {column: self.signup_time.kind}).values()
        table.missing(column, np.isnan(raw.values), "a rating needs its time, or leave the column out")
        return float(np.nanmin(raw.values, initial=np.inf))

    def _read(self, path: Path | TableLike, others: list[str], kept: dict[str, Any]) -> tuple[Table, Tree]:
        """The items of a table with their features: its own columns, else those of the catalogue."""
        table = open_table(path, self.reading)
        table.need(self.item, *others)
        names = self._named(words_of(table, self.item, "a row needs its item"))
        numbers = place_of(names, self.items).astype(np.int64) + 1
        numbers = np.where(numbers > len(self.items), 0, numbers)
        inputs = self._numbered(numbers)
        for name, columns in (("item_features", self.item_columns), ("user_features", self.user_columns)):
            if columns is None:
                continue
            if name == "item_features" and not set(columns.kinds) & set(table.frame.columns):
                table.bad(self.item, numbers == 0, f"is unknown: give it the columns {', '.join(columns.kinds)}")
                assert self.catalogue is not None
                features = self.catalogue[np.maximum(numbers, 1) - 1]
            elif name == "user_features" and not set(columns.kinds) & set(table.frame.columns):
                features = missing_features(columns, len(table))
            else:
                features = columns.spread(columns.encode(read_columns(table, columns.kinds)))
            inputs[name] = torch.from_numpy(features)
        if self.signup_time is not None:
            time = kept["came"] if "came" in kept else self._signup_time(table)
            of_user = torch.from_numpy(self.signup_time.encode(np.full(len(table), np.inf if time is None else time)))
            inputs["user_features"] = torch.cat([inputs.get("user_features", of_user[:, :0]), of_user], 1)
        return table, inputs
