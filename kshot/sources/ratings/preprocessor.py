"""What is known of rated items, and how rows of ratings become inputs and targets; a run keeps it.

Shape legend: n ratings, I items, L levels.
"""

from __future__ import annotations

import base64
import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.data.tables.columns import Columns, place_of, read_columns
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Reading, Table
from kshot.objectives import Objective
from kshot.tasks.preprocessor import Support
from kshot.types import Tree


class ItemMean(NamedTuple):
    """How items stand with the users of training.

    Attributes:
        total: float32 (I,), the sum of their ratings, less the means of those who gave them, in deviations.
        counts: int64 (I,), how many these are.
        left: float32 (n,), what each rating is of such a sum; 0 for those that are not of training.
    """

    total: np.ndarray
    counts: np.ndarray
    left: np.ndarray

    @classmethod
    def of(cls, owner: np.ndarray, item: np.ndarray, scores: np.ndarray, train: np.ndarray, std: float) -> ItemMean:
        """Of ratings (n,), `item` from 0 where `train`."""
        users, items = owner[train], item[train]
        own = ((scores[train] - scores[train].mean()) / std).astype(np.float32)
        of_users, of_items = np.bincount(users) + 5, np.bincount(items)
        above = np.zeros(len(of_items))
        for _ in range(5):  # means of users and of items, each of what the other leaves
            of_user = np.bincount(users, own - above[items]) / of_users
            above = np.bincount(items, own - of_user[users]) / (of_items + 5)
        left = np.zeros(len(scores), np.float32)
        left[train] = own - of_user[users]
        return cls((above * (of_items + 5)).astype(np.float32), of_items, left)

    def without(self, items: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """float32 (..., 2) for numbers of items (...), 0 for one not of training, without ratings (...) themselves."""
        known = items > 0
        place = np.maximum(items, 1) - 1
        left = np.float32(0) if rows is None else self.left[rows]
        total = (self.total[place] - left) * known
        count = (self.counts[place] - (left != 0)) * known
        return np.stack([total / (count + 5), total / (count + 1)], -1).astype(np.float32)


TENTHS = 10


class SignupTime(NamedTuple):
    """When users came, that is first rated something, told by how far that is through each tenth of training's users.

    Who came after all of them has ones alone, as a new user of today does, however long ago training was.

    Attributes:
        column: of the time.
        kind: what it holds, see `read_columns`.
        edges: the times (11,) between which tenths of the training users came.
    """

    column: str
    kind: str
    edges: tuple[float, ...]

    @classmethod
    def of(cls, column: str, kind: str, first: np.ndarray) -> SignupTime:
        """By the first times (U,) of the training users."""
        return cls(column, kind, tuple(np.quantile(first, np.linspace(0, 1, TENTHS + 1)).tolist()))

    @property
    def features(self) -> list[str]:
        """Their names."""
        return [f"{self.column} of the first rating, tenth {number}" for number in range(1, TENTHS + 1)]

    def encode(self, first: np.ndarray) -> np.ndarray:
        """float32 (..., 10) of first times (...), each from 0 to 1."""
        edges = np.array(self.edges)
        width = np.maximum(np.diff(edges), 1e-9)
        return ((first[..., None] - edges[:-1]) / width).clip(0, 1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class RatingPreprocessor:
    """How rows of ratings become inputs and targets. Features stand beside the ratings, in the same file.

    Attributes:
        item, rating: the columns; None for `rating` where rows are clicks.
        mean, std, low, high: of the training ratings.
        levels: their values, if these are asked for; clicks have 0 and 1.
        like: a rating from which on an item is liked.
        items: the names of the items with training ratings; number k has the number k + 1.
        counts: how many each has.
        totals: of their `ItemMean`, if inputs tell it.
        signup_time: when users came, if inputs tell it.
        titles: what a person calls them, if that is known.
        item_columns, user_columns: the columns of features, if there are any.
        catalogue: float32 (I, F), the features of `items`, so that a file need not repeat them.
        reading: how the file was written.
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
    reading: Reading

    @property
    def objective(self) -> Objective:
        """What the tasks ask."""
        if self.levels:
            return objectives.levels(self.levels, self.mean, self.std, self.like)
        return objectives.rating(self.mean, self.std, self.low, self.high, self.like)

    def targets(self, scores: np.ndarray) -> np.ndarray:
        """Ratings (n,) as they are kept: standardised, or the numbers of their levels."""
        if self.levels:
            return np.searchsorted(np.array(self.levels) - 1e-9, scores, side="right").astype(np.int8) - 1
        return ((scores - self.mean) / self.std).astype(np.float32)

    def scores(self, targets: np.ndarray) -> np.ndarray:
        """What `targets` made of ratings, as ratings again."""
        return np.array(self.levels)[targets] if self.levels else targets * self.std + self.mean

    def support(self, path: Path) -> Support:
        """One user's ratings; when they came is kept, if the file tells the time of each."""
        found, inputs = self._read(path, [self.rating] if self.rating else [], {})
        kept = {} if self.signup_time is None else {"came": self._came(found)}
        names = found.labels(self.item)
        found.bad(self.item, (names.is_duplicated() & names.is_not_null()).to_numpy(), "is there twice; keep one row")
        if self.rating is None:
            found.settle()
            return Support(inputs, torch.eye(2)[1].repeat(len(found), 1), kept)
        scores = found.numbers(self.rating)
        found.missing(self.rating, np.isnan(scores), "a support row needs one")
        for fault, rows in _by_value([self.fault(score) for score in scores.tolist()]):
            found.bad(self.rating, rows & ~np.isnan(scores), fault)
        found.settle()
        return Support(inputs, self.wide(scores), kept)

    def whole(self, user_features: Tensor | None = None) -> Tree:
        """Inputs for all items of training, (I, ...), in order.

        Args:
            user_features: (1, F) of the user, where users have any.
        """
        inputs = self._of(np.arange(1, len(self.items) + 1))
        if self.catalogue is not None:
            inputs["item_features"] = torch.tensor(self.catalogue)
        if user_features is None:
            user_features = self._of_nobody()
        if user_features is not None:
            inputs["user_features"] = user_features.expand(len(self.items), -1)
        return inputs

    def of_ratings(self, ratings: Mapping[str, float]) -> Support:
        """One user's ratings of items of training, by name or, where no other has the same, by title.

        Raises:
            ValueError: an item that is none of them, or a rating out of the scale.
        """
        named = {name: place for place, name in enumerate(self.items)}
        once = Counter(self.titles)
        titled = {title: place for place, title in enumerate(self.titles) if once[title] == 1}
        places = []
        for name, score in ratings.items():
            place = named.get(name, titled.get(name))
            if place is None:
                near = difflib.get_close_matches(name, [*titled, *named][:100_000], 1)
                raise ValueError(f"no item is named {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
            if fault := self.fault(score):
                raise ValueError(f"the rating of {name!r}, {score:g}, {fault}")
            places.append(place)
        if len(set(places)) < len(places):
            raise ValueError("an item is rated twice; keep one rating")
        chosen = torch.tensor(places, dtype=torch.int64)
        inputs = self._of(chosen.numpy() + 1)
        if self.catalogue is not None:
            inputs["item_features"] = torch.tensor(self.catalogue)[chosen]
        if (user_features := self._of_nobody()) is not None:
            inputs["user_features"] = user_features.expand(len(chosen), -1)
        return Support(inputs, self.wide(np.array(list(ratings.values()), float)), {})

    def fault(self, score: float) -> str:
        """What is wrong with a rating; empty where nothing is."""
        if not self.low <= score <= self.high:
            return f"is out of the scale of the training ratings, {self.low:g} to {self.high:g}"
        if self.levels and score not in self.levels:
            return f"is none of {', '.join(f'{level:g}' for level in self.levels)}"
        return ""

    def wide(self, scores: np.ndarray) -> Tensor:
        """Ratings (n,) as targets of a batch: one-hot (n, L), or standardised (n, 1)."""
        targets = torch.from_numpy(self.targets(scores))
        return torch.eye(len(self.levels))[targets.long()] if self.levels else targets[:, None]

    def inputs(self, path: Path, kept: dict[str, Any]) -> Tree:
        """Items to predict for; each has its name in `answers` by its row."""
        found, inputs = self._read(path, [], kept)
        found.settle()
        return inputs

    def expected(self, prediction: Tree) -> Tensor:
        """The rating that is expected, (n,), by a prediction, with a spread or without; of clicks their chance."""
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
        chances = prediction.softmax(-1)
        return rows | {f"p({level:g})": chances[:, place].tolist() for place, level in enumerate(self.levels)}

    def describe(self) -> dict[str, Any]:
        told: dict[str, Any] = {"inputs": {self.item: f"the number of one of {len(self.items):,} items, or 0"}}
        for columns in (self.item_columns, self.user_columns):
            told["inputs"] |= columns.describe() if columns else {}
        if self.signup_time is not None:
            told["inputs"] |= {
                self.signup_time.column: "of a user's first rating: how far through each tenth of training's users"
            }
        if self.rating is None:
            return told | {"target": "whether an item was clicked"}
        if self.levels:
            return told | {"target": f"{self.rating}: one of {', '.join(f'{level:g}' for level in self.levels)}"}
        return told | {"target": f"{self.rating}: (y − {self.mean:.4g}) / {self.std:.4g}"}

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("item", "rating", *_NUMBERS, *_LISTS)}
        columns = {name: getattr(self, name) for name in ("item_columns", "user_columns")}
        written = {name: own.to_json() if own else None for name, own in columns.items()}
        told = self.catalogue
        packed = (
            None if told is None else {"shape": list(told.shape), "base64": base64.b64encode(told.tobytes()).decode()}
        )
        signup_time = self.signup_time and self.signup_time._asdict()
        kept = {"reading": self.reading._asdict(), "signup_time": signup_time, "catalogue": packed}
        return {"kind": "ratings", **kept, **plain, **written}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RatingPreprocessor:
        plain = {name: own for name, own in data.items() if name != "kind"}
        for name in ("item_columns", "user_columns"):
            plain[name] = Columns.from_json(data[name]) if data[name] else None
        if (packed := data["catalogue"]) is not None:
            told = np.frombuffer(base64.b64decode(packed["base64"]), np.float32).reshape(packed["shape"])
            plain["catalogue"] = told
        if (signup_time := data["signup_time"]) is not None:
            plain["signup_time"] = SignupTime(signup_time["column"], signup_time["kind"], tuple(signup_time["edges"]))
        lists = {name: tuple(data[name]) for name in _LISTS}
        return cls(**plain | lists | {"reading": Reading(**data["reading"])})

    def _of(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """What is known of items (n,) by their numbers, but for their features."""
        inputs = {"item": torch.from_numpy(numbers.astype(np.int64))}
        if self.totals:
            stands = ItemMean(np.array(self.totals, np.float32), np.array(self.counts), np.zeros(0, np.float32))
            inputs["item_mean"] = torch.from_numpy(stands.without(numbers))
        return inputs

    def _of_nobody(self) -> Tensor | None:
        """The features (1, F) of a user of whom nothing is told, None if users have none: who came after all others."""
        if self.user_columns is not None:
            raise ValueError(f"users have features here: give {', '.join(self.user_columns.kinds)} in a file")
        return None if self.signup_time is None else torch.from_numpy(self.signup_time.encode(np.array([np.inf])))

    def _came(self, found: Table) -> float | None:
        """When a user came by the ratings of a file; None if it does not tell."""
        assert self.signup_time is not None
        if self.signup_time.column not in found.frame.columns:
            return None
        (raw,) = read_columns(found, {self.signup_time.column: self.signup_time.kind}).values()
        found.missing(self.signup_time.column, np.isnan(raw.values), "a rating needs its time, or leave the column out")
        return float(np.nanmin(raw.values, initial=np.inf))

    def _read(self, path: Path, others: list[str], kept: dict[str, Any]) -> tuple[Table, Tree]:
        """The items of a file with their features: those that stand in it, or else the catalogue's."""
        found = open_table(path, self.reading)
        found.need(self.item, *others)
        found.missing(self.item, found.labels(self.item).is_null().to_numpy(), "a row needs its item")
        places = place_of(found.labels(self.item), self.items).astype(np.int64) + 1
        number = np.where(places > len(self.items), 0, places)
        inputs = self._of(number)
        for name, columns in (("item_features", self.item_columns), ("user_features", self.user_columns)):
            if columns is None:
                continue
            if name == "item_features" and not set(columns.kinds) & set(found.frame.columns):
                found.bad(
                    self.item, number == 0, f"is unknown: give it the columns {', '.join(columns.kinds)} of its own"
                )
                assert self.catalogue is not None
                inputs[name] = torch.from_numpy(self.catalogue[np.maximum(number, 1) - 1])
            else:
                values = columns.encode(read_columns(found, columns.kinds))
                inputs[name] = torch.from_numpy(columns.spread(values))
        if self.signup_time is not None:
            came = kept["came"] if "came" in kept else self._came(found)
            of_user = torch.from_numpy(self.signup_time.encode(np.full(len(found), np.inf if came is None else came)))
            own = inputs.get("user_features", of_user[:, :0])
            inputs["user_features"] = torch.cat([own, of_user], 1)
        return found, inputs


def _by_value(faults: list[str]) -> list[tuple[str, np.ndarray]]:
    """Each fault that there is, and the rows (n,) that have it."""
    return [(fault, np.array([own == fault for own in faults])) for fault in dict.fromkeys(faults) if fault]


_NUMBERS = ("mean", "std", "low", "high", "like")
_LISTS = ("levels", "items", "counts", "totals", "titles")
