"""Columns of a table as numbers that a model can take, and how a new row is turned into the same numbers.

What is fitted (means, spreads, words) comes from training rows alone, and goes into JSON, so that rows of another file
are encoded alike years later, without the training data. Values are kept compact, one number a column, and are spread
out into features where rows are taken.

Shape legend: n rows, F features, A numbers, B words, C dates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from kshot.data.tables.table import Kind, Table

HASHED = 64
"""Numbers that a text becomes."""
ONE_HOT = 32
"""Up to so many words get a feature each; more share as many by codes."""
FARTHEST = 10.0
"""A number farther from the mean than so many standard deviations counts as that far: one slip of a pen, 5200 for 52,
would else throw every task that draws its row."""
YEAR, WEEK, DAY = 365.2425 * 86400, 7 * 86400, 86400  # seconds
MONDAY = 4 * 86400  # 1970 began on a Thursday


@dataclass(frozen=True)
class Column:
    """One column, and how it becomes features.

    Attributes:
        name: in the table.
        kind: what it holds; a "set" is several words in one value, as "Drama|Crime", a "text" is hashed.
        format: how its dates are written; None is ISO 8601.
        mean, std: of the training rows: a number's own units, a date's seconds since 1970.
        gaps: whether a value was missing in a training row; there is a feature for it then.
        words: the words of the training rows, those that stand in one row alone left out.
        clock: whether the dates have a time of day.
        left_out: why the column has no features; empty where it has.
    """

    name: str
    kind: Kind
    format: str | None = None
    mean: float = 0.0
    std: float = 1.0
    gaps: bool = False
    words: tuple[str, ...] = ()
    clock: bool = False
    left_out: str = ""

    @property
    def features(self) -> list[str]:
        """The names of its features."""
        missing = [f"{self.name} is missing"] if self.gaps else []
        if self.left_out:
            return []
        if self.kind == "category":
            known = [f"{self.name}={word}" for word in self.words]
            coded = [f"{self.name} code {number}" for number in range(ONE_HOT)]
            return [*(known if len(known) <= ONE_HOT else coded), f"{self.name} is unknown", *missing]
        if self.kind == "set":
            known = [f"{self.name}={word}" for word in self.words]
            return known if len(known) <= ONE_HOT else [f"{self.name} code {number}" for number in range(ONE_HOT)]
        if self.kind == "text":
            return [f"{self.name} hash {number}" for number in range(HASHED)]
        if self.kind == "date":
            cycles = ["year", "week", *(["day"] if self.clock else [])]
            return [
                self.name,
                *(f"{self.name} {part} of {cycle}" for cycle in cycles for part in ("sin", "cos")),
                *missing,
            ]
        return [self.name, *missing]

    def describe(self) -> str:
        """How it is encoded, for a person."""
        if self.left_out:
            return f"left out: {self.left_out}"
        gaps = ", and whether it is missing" if self.gaps else ""
        if self.kind == "category":
            few = len(self.words) <= ONE_HOT
            how = "one-hot" if few else f"codes of {ONE_HOT} signs"
            return f"category: {len(self.words)} words, {how}, and a place for unknown ones{gaps}"
        if self.kind == "date":
            cycles = "year, week and day" if self.clock else "year and week"
            return f"date: linear, and sine and cosine of {cycles}{gaps}"
        if self.kind == "set":
            how = "a 0 or 1 each" if len(self.words) <= ONE_HOT else f"the sum of their codes of {ONE_HOT} signs"
            return f"set: of {len(self.words)} words, {how}; others are passed over"
        if self.kind == "text":
            return f"text: its words, hashed to {HASHED} numbers"
        if self.kind == "boolean":
            return f"boolean: 0 or 1, less the mean of {self.mean:.4g}{gaps}"
        return f"number: (x − {self.mean:.4g}) / {self.std:.4g}, no farther from 0 than {FARTHEST:g}{gaps}"


class Values(NamedTuple):
    """Rows of encoded columns, compact.

    Attributes:
        numbers: float32 (n, A), standardised and no farther from 0 than `FARTHEST`, NaN where missing.
        words: int32 (n, B), the place of the word; after the last come "unknown" and "missing".
        dates: float64 (n, C), seconds since 1970, NaN where missing.
        made: float32 (n, P), features already: of sets and of texts.
    """

    numbers: np.ndarray
    words: np.ndarray
    dates: np.ndarray
    made: np.ndarray

    def rows(self, rows: np.ndarray) -> Values:
        """The values of rows, an index or a mask."""
        return Values(*(part[rows] for part in self))


class Columns:
    """The columns that make the inputs of a table's examples: fitted to training rows, then used for any.

    Example:
        >>> import polars
        >>> from pathlib import Path
        >>> table = Table(Path("shop.parquet"), polars.DataFrame({"price": [1.0, 3.0, None], "kind": ["a", "b", "b"]}))
        >>> raw = read_columns(table, {"price": "number", "kind": "category"})
        >>> columns = Columns.fit(raw, np.array([True, True, True]))
        >>> columns.features
        ['price', 'price is missing', 'kind=b', 'kind is unknown']
        >>> columns.spread(columns.encode(raw)).tolist()
        [[-1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        kept = [column for column in columns if not column.left_out]
        self._numbers = [column for column in kept if column.kind in ("number", "boolean")]
        self._words = [column for column in kept if column.kind == "category"]
        self._dates = [column for column in kept if column.kind == "date"]
        self._made = [column for column in kept if column.kind in ("set", "text")]
        self._gaps = np.array([column.gaps for column in self._numbers], bool)
        self._tables = [_word_table(column) for column in self._words]

    @property
    def kinds(self) -> dict[str, str]:
        """What to read each used column as, for `read_columns`: its kind, or how its dates are written."""
        return {column.name: column.format or column.kind for column in self.columns if not column.left_out}

    @cached_property
    def features(self) -> list[str]:
        """The names of the F features, in order: numbers, which of them are missing, words, dates, sets and texts."""
        numbers = [column.name for column in self._numbers]
        gaps = [column.features[1] for column in self._numbers if column.gaps]
        return [
            *numbers,
            *gaps,
            *(name for column in (*self._words, *self._dates, *self._made) for name in column.features),
        ]

    @classmethod
    def fit(cls, raw: Mapping[str, Raw], train: np.ndarray, *, asked: Sequence[str] = ()) -> Columns:
        """Fit to the training rows, a mask (n,). A column that can tell nothing is left out, unless it was asked for.

        Raises:
            ValueError: no column is left.
        """
        columns = [_fit(name, values, train, name in asked) for name, values in raw.items()]
        if all(column.left_out for column in columns):
            reasons = "; ".join(f"{column.name!r}: {column.left_out}" for column in columns)
            raise ValueError(
                f"no column is left to make inputs of ({reasons or 'there are none'}); name some in inputs"
            )
        return cls(columns)

    def encode(self, raw: dict[str, Raw]) -> Values:
        """Values as read, standardised and numbered; `raw` is emptied on the way, to hold no column twice."""
        count = len(next(iter(raw.values())).values)
        numbers = np.empty((count, len(self._numbers)), np.float32)
        for place, column in enumerate(self._numbers):
            numbers[:, place] = (raw.pop(column.name).values - column.mean) / column.std
        np.clip(numbers, -FARTHEST, FARTHEST, out=numbers)
        words = np.empty((count, len(self._words)), np.int32)
        for place, column in enumerate(self._words):
            own = raw.pop(column.name).values
            words[:, place] = place_of(own, column.words)
            if column.gaps:
                words[own.is_null().to_numpy(), place] = len(column.words) + 1
        dates = np.empty((count, len(self._dates)))
        for place, column in enumerate(self._dates):
            dates[:, place] = raw.pop(column.name).values
        made = [_parts(column, raw.pop(column.name).values) for column in self._made]
        return Values(numbers, words, dates, np.concatenate([np.zeros((count, 0), np.float32), *made], 1))

    def spread(self, values: Values) -> np.ndarray:
        """The features, float32 (..., F), of values (..., A), (..., B), (..., C)."""
        missing = np.isnan(values.numbers)
        parts = [np.where(missing, np.float32(0), values.numbers), missing[..., self._gaps].astype(np.float32)]
        parts += [table[values.words[..., place]] for place, table in enumerate(self._tables)]
        parts += [_calendar(values.dates[..., place], column) for place, column in enumerate(self._dates)]
        parts.append(values.made)
        return np.concatenate(parts, -1, dtype=np.float32)

    def describe(self) -> dict[str, str]:
        """Each column, and how it is encoded."""
        return {column.name: column.describe() for column in self.columns}

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(column) for column in self.columns]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]]) -> Columns:
        return cls([Column(**{**entry, "words": tuple(entry["words"])}) for entry in data])


class Raw(NamedTuple):
    """A column as it was read: float64 (n,) with NaN for missing values, or words as a polars Series with nulls."""

    kind: Kind
    values: Any
    format: str | None = None


def read_columns(table: Table, kinds: Mapping[str, str]) -> dict[str, Raw]:
    """Read columns as what they are said to be; what does not fit is a fault of the table.

    Args:
        table: has the columns.
        kinds: column to "number", "boolean", "category", "set", "text", "date", or the format of its dates, such as
            "%d/%m/%Y".

    Raises:
        ValueError: a kind that is none, or a column that is missing.
    """
    table.need(*kinds)
    found = {}
    for name, kind in kinds.items():
        if kind == "number":
            found[name] = Raw("number", table.numbers(name))
        elif kind == "boolean":
            found[name] = Raw("boolean", table.booleans(name))
        elif kind in ("category", "set", "text"):
            found[name] = Raw(kind, table.labels(name))  # type: ignore[arg-type]
        elif kind == "date" or "%" in kind:
            form = kind if "%" in kind else None
            found[name] = Raw("date", table.seconds(name, form), form)
        else:
            raise ValueError(
                f"kinds: {name!r} is no {kind!r}; a column is a number, boolean, category, set, text or date, or a "
                "format of dates such as '%d/%m/%Y'"
            )
    return found


def moments(values: np.ndarray, where: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the values (n,) at a mask, missing ones left out; (0, 1) where there are none."""
    known = values[where]
    known = known[~np.isnan(known)]
    if not len(known):
        return 0.0, 1.0
    mean = float(known.mean())
    std = float(np.sqrt(np.square(known - mean).mean()))
    return mean, std if std > 1e-12 * max(abs(mean), 1e-300) else 0.0


def _fit(name: str, raw: Raw, train: np.ndarray, asked: bool) -> Column:
    if raw.kind == "category":
        return _fit_words(name, raw.values, train, asked)
    if raw.kind == "set":
        return _fit_set(name, raw.values, train)
    if raw.kind == "text":
        return Column(name, "text")
    missing = np.isnan(raw.values[train])
    mean, std = moments(raw.values, train)
    gaps = bool(missing.any())
    left_out = "no training row has a value" if missing.all() else ""
    if not std and not gaps and not left_out:
        left_out = "the same in every training row"
    if raw.kind == "boolean":
        std = 1.0
    clock = raw.kind == "date" and bool(np.any(np.nan_to_num(raw.values[train]) % DAY))
    return Column(name, raw.kind, raw.format, mean, std or 1.0, gaps, clock=clock, left_out=left_out)


def _fit_words(name: str, words: Any, train: np.ndarray, asked: bool) -> Column:
    import polars as pl

    own = words.alias("word").filter(pl.Series(train))
    counts = own.drop_nulls().value_counts().sort("word")
    known = counts.filter(pl.col("count") > 1)["word"].to_list()
    gaps = bool(own.null_count())
    left_out = ""
    if not asked and counts.height > ONE_HOT and counts.height > len(own) / 2:
        left_out = f"nearly every row has a word of its own ({counts.height:,} in {len(own):,} training rows)"
    elif counts.height < 2 and not (gaps and counts.height):
        left_out = "the same in every training row"
    elif not known:
        left_out = "no word stands in two training rows"
    return Column(name, "category", gaps=gaps, words=() if left_out else tuple(known), left_out=left_out)


SEPARATORS = r"\s*[|;]\s*"
"""What stands between the words of a set."""


def _split(values: Any) -> Any:
    """The words of each row's set, as a polars Series of lists; none where it is missing."""
    plain = values.fill_null("").str.strip_chars().str.replace_all(SEPARATORS, "|")
    return plain.str.split("|")


def _fit_set(name: str, values: Any, train: np.ndarray) -> Column:
    import polars as pl

    counts = _split(values.filter(pl.Series(train))).explode().value_counts()
    counts = counts.filter((pl.col(counts.columns[0]) != "") & (pl.col("count") > 1))
    words = tuple(sorted(counts[counts.columns[0]].to_list()))
    return Column(name, "set", words=words, left_out="" if words else "no word stands in two training rows")


def _parts(column: Column, values: Any) -> np.ndarray:
    """The features (n, f) of a set or a text."""
    if column.kind == "text":
        from kshot.data.text.features import hashed_ngrams

        texts = values.fill_null("").to_list()
        return hashed_ngrams(texts, of="words", ngrams=(1, 1), width=HASHED).take(np.arange(len(texts))).numpy()
    lists = _split(values)
    owner = np.repeat(np.arange(len(lists)), lists.list.len().to_numpy())
    place = place_of(lists.explode(), column.words)
    known = place < len(column.words)
    table = _word_table(column)[: len(column.words), : min(len(column.words), ONE_HOT)]
    found = np.zeros((len(lists), table.shape[1]), np.float32)
    np.add.at(found, owner[known], table[place[known]])
    return found if len(column.words) > ONE_HOT else np.minimum(found, 1)


def place_of(words: Any, known: Sequence[str]) -> np.ndarray:
    """The place of each word (n,) among the known ones, int32; for other words and missing ones, how many are known."""
    import polars as pl

    count = len(known)
    if not count:
        return np.zeros(len(words), np.int32)
    places = pl.int_range(count, dtype=pl.Int32, eager=True)
    return words.replace_strict(pl.Series(known), places, default=count).to_numpy().astype(np.int32)


def _word_table(column: Column) -> np.ndarray:
    r"""The features of each place: of every word, of an unknown one, of a missing one.

    Few words are one-hot. Many get codes: fixed signs $\pm 1 / \sqrt{32}$ that follow from a hash of the word. They are
    a random projection of the one-hot vectors, which keeps lengths and distances in expectation, so that words stay
    apart where plain hashing would throw some together, and no table has to be learned from few rows.

    References:
        Achlioptas: Database-friendly random projections, Journal of Computer and System Sciences 66, 2003.
    """
    count = len(column.words)
    if count <= ONE_HOT:
        return np.eye(count + 1 + column.gaps, dtype=np.float32)
    hashes = b"".join(hashlib.blake2b(word.encode(), digest_size=ONE_HOT // 8).digest() for word in column.words)
    signs = np.unpackbits(np.frombuffer(hashes, np.uint8).reshape(count, -1), axis=1) * np.float32(2) - 1
    table = np.zeros((count + 1 + column.gaps, ONE_HOT + 1 + column.gaps), np.float32)
    table[:count, :ONE_HOT] = signs / np.sqrt(ONE_HOT)
    table[count, ONE_HOT] = 1
    if column.gaps:
        table[-1, -1] = 1
    return table


def _calendar(seconds: np.ndarray, column: Column) -> np.ndarray:
    """A date's features (..., f): linear, and sine and cosine of where in the year, the week and the day it lies."""
    missing = np.isnan(seconds)
    seconds = np.where(missing, column.mean, seconds)
    turns = [seconds / YEAR, (seconds - MONDAY) / WEEK, *([seconds / DAY] if column.clock else [])]
    parts = [(seconds - column.mean) / column.std]
    for turn in turns:
        parts += [np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn)]
    known = np.stack(parts, -1) * ~missing[..., None]
    return np.concatenate([known, missing[..., None]], -1) if column.gaps else known
