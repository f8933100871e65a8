"""Columns of a table as features: fitted to training rows, then applied to any rows.

What is fitted (means, deviations, words) comes from training rows only and is stored as JSON, so that rows of another
file are encoded alike without the training data. Values are stored compactly, one number a column, and expanded into
features when rows are taken.

Shape legend: n rows, F features, A numbers, B words, C dates, P features of sets and texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from kshot.data.tables.dates import SEPARATOR
from kshot.data.tables.moments import moments
from kshot.data.tables.numerals import Style
from kshot.data.tables.table import Kind, Table

HASHED = 64
"""Features of a text."""
SPACES = 2.0
"""Mean number of spaces from which different words are called texts."""
ONE_HOT = 32
"""Largest number of words that are one-hot encoded; more are encoded by codes of this length."""
FARTHEST = 10.0
"""Numbers are clipped to this many standard deviations from the mean, as a single typing error (5200 for 52) would
otherwise ruin every task that contains its row."""
YEAR, WEEK, DAY = 365.2425 * 86400, 7 * 86400, 86400  # seconds
MONDAY = 4 * 86400  # 1970 began on a Thursday

SEPARATORS = r"\s*[|;]\s*"
"""Separators of the words of a set."""


@dataclass(frozen=True)
class Column:
    """One column, and how it is encoded.

    Attributes:
        name: in the table.
        kind: of its content; a "set" is several words in one value, as "Drama|Crime"; a "text" is hashed.
        format: of its dates, None for ISO 8601; or the style of its numbers, such as "1.234,5 €", None for plain ones.
        mean, std: of the training rows, in the unit of the numbers, or seconds since 1970.
        gaps: whether training rows have missing values; if so, "is missing" is a feature.
        words: that occur in at least two training rows.
        clock: whether its dates have a time of day.
        left_out: reason why the column has no features; empty if it has.
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
        if self.left_out:
            return []
        missing = [f"{self.name} is missing"] if self.gaps else []
        words = [f"{self.name}={word}" for word in self.words]
        if len(words) > ONE_HOT:
            words = [f"{self.name} code {number}" for number in range(ONE_HOT)]
        cycles = ["year", "week", *(["day"] if self.clock else [])]
        return {
            "category": [*words, f"{self.name} is unknown", *missing],
            "set": words,
            "text": [f"{self.name} hash {number}" for number in range(HASHED)],
            "date": [self.name, *(f"{self.name} {part} of {c}" for c in cycles for part in ("sin", "cos")), *missing],
        }.get(self.kind, [self.name, *missing])

    def describe(self) -> str:
        """A description of the encoding."""
        if self.left_out:
            return f"left out: {self.left_out}"
        gaps = ", and whether it is missing" if self.gaps else ""
        count = len(self.words)
        words, members = "one-hot", "a 0 or 1 each"
        if count > ONE_HOT:
            words, members = f"codes of {ONE_HOT} signs", f"the sum of their codes of {ONE_HOT} signs"
        cycles = "year, week and day" if self.clock else "year and week"
        encoding = {
            "category": f"{count} words, {words}, and a feature for unknown ones{gaps}",
            "date": f"linear, and sine and cosine of {cycles}{gaps}",
            "set": f"of {count} words, {members}; others are ignored",
            "text": f"its words, hashed to {HASHED} numbers",
            "boolean": f"0 or 1, minus the mean of {self.mean:.4g}{gaps}",
            "number": f"(x − {self.mean:.4g}) / {self.std:.4g}, clipped to ±{FARTHEST:g}{gaps}",
        }
        return f"{self.kind}: {encoding[self.kind]}"


class Values(NamedTuple):
    """Rows of encoded columns, compact.

    Attributes:
        numbers: float32 (n, A), standardised and clipped to ± `FARTHEST`, NaN where missing.
        words: int32 (n, B), index of the word; the indices after the last word are "unknown" and "missing".
        dates: float64 (n, C), seconds since 1970, NaN where missing.
        derived: float32 (n, P), the features of sets and texts.
    """

    numbers: np.ndarray
    words: np.ndarray
    dates: np.ndarray
    derived: np.ndarray

    def rows(self, rows: np.ndarray) -> Values:
        """The values of rows, by index or mask."""
        return Values(*(part[rows] for part in self))


class Columns:
    """The columns that are the inputs of a table's examples: fitted to training rows, then applied to any.

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
        used = [column for column in columns if not column.left_out]
        self._numbers = [column for column in used if column.kind in ("number", "boolean")]
        self._words = [column for column in used if column.kind == "category"]
        self._dates = [column for column in used if column.kind == "date"]
        self._derived = [column for column in used if column.kind in ("set", "text")]
        self._gaps = np.array([column.gaps for column in self._numbers], bool)
        self._tables = [word_table(column) for column in self._words]

    @property
    def kinds(self) -> dict[str, str]:
        """The kind, or the format of dates and numbers, of each used column, for `read_columns`."""
        return {column.name: column.format or column.kind for column in self.columns if not column.left_out}

    @cached_property
    def features(self) -> list[str]:
        """The names of the F features, in order: numbers, which of them are missing, words, dates, sets and texts."""
        numbers = [column.name for column in self._numbers]
        gaps = [column.features[1] for column in self._numbers if column.gaps]
        others = [name for column in (*self._words, *self._dates, *self._derived) for name in column.features]
        return [*numbers, *gaps, *others]

    @property
    def without_gaps(self) -> list[str]:
        """The columns of numbers and dates of which no training row has a missing value."""
        return [column.name for column in (*self._numbers, *self._dates) if not column.gaps]

    @classmethod
    def fit(cls, raw: Mapping[str, Raw], train: np.ndarray, *, requested: Sequence[str] = ()) -> Columns:
        """Fit to the training rows, a mask (n,); ValueError if no column is informative.

        `requested` columns are named by the user, and kept even if nearly all their words are unique.
        """
        columns = [_fit(name, values, train, name in requested) for name, values in raw.items()]
        if all(column.left_out for column in columns):
            reasons = "; ".join(f"{column.name!r}: {column.left_out}" for column in columns)
            raise ValueError(f"no column is usable as input ({reasons or 'there are none'}); name some in inputs")
        return cls(columns)

    def encode(self, raw: dict[str, Raw]) -> Values:
        """Standardise and number values; `raw` is emptied on the way, to keep no column in memory twice."""
        num_rows = len(next(iter(raw.values())).values)
        numbers = np.empty((num_rows, len(self._numbers)), np.float32)
        for index, column in enumerate(self._numbers):
            numbers[:, index] = (raw.pop(column.name).values - column.mean) / column.std
        np.clip(numbers, -FARTHEST, FARTHEST, out=numbers)
        words = np.empty((num_rows, len(self._words)), np.int32)
        for index, column in enumerate(self._words):
            values = raw.pop(column.name).values
            words[:, index] = place_of(values, column.words)
            if column.gaps:
                words[values.is_null().to_numpy(), index] = len(column.words) + 1
        dates = np.empty((num_rows, len(self._dates)))
        for index, column in enumerate(self._dates):
            dates[:, index] = raw.pop(column.name).values
        derived = [_set_or_text(column, raw.pop(column.name).values) for column in self._derived]
        return Values(numbers, words, dates, np.concatenate([np.zeros((num_rows, 0), np.float32), *derived], 1))

    def spread(self, values: Values) -> np.ndarray:
        """The features, float32 (..., F), of values (..., A), (..., B), (..., C), (..., P)."""
        missing = np.isnan(values.numbers)
        parts = [np.where(missing, np.float32(0), values.numbers), missing[..., self._gaps].astype(np.float32)]
        parts += [table[values.words[..., index]] for index, table in enumerate(self._tables)]
        parts += [_calendar(values.dates[..., index], column) for index, column in enumerate(self._dates)]
        parts.append(values.derived)
        return np.concatenate(parts, -1, dtype=np.float32)

    def describe(self) -> dict[str, str]:
        """A description of the encoding of each column."""
        return {column.name: column.describe() for column in self.columns}

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(column) for column in self.columns]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]]) -> Columns:
        return cls([Column(**{**entry, "words": tuple(entry["words"])}) for entry in data])


class Raw(NamedTuple):
    """A column before encoding: float64 (n,) with NaN for missing values, or a polars Series of words with nulls."""

    kind: Kind
    values: Any
    format: str | None = None


def read_columns(table: Table, kinds: Mapping[str, str]) -> dict[str, Raw]:
    """Read columns as given kinds; values that do not fit are faults of the table.

    Args:
        table: that contains the columns.
        kinds: column to "number", "boolean", "category", "set", "text", "date", the format of its dates, such as
            "%d/%m/%Y", several joined by " | ", or the style of its numbers, such as "1.234,5 €".

    Raises:
        ValueError: an unknown kind, or a missing column.
    """
    table.need(*kinds)
    read: dict[str, Callable[[str], Any]] = {"number": table.numbers, "boolean": table.booleans, "date": table.seconds}
    read |= dict.fromkeys(["category", "set", "text"], table.labels)
    columns = {}
    for name, kind in kinds.items():
        if Style.parse(kind):
            columns[name] = Raw("number", table.numbers(name, kind), kind)
        elif "%" in kind:
            columns[name] = Raw("date", table.seconds(name, kind), kind)
        elif kind in read:
            columns[name] = Raw(kind, read[kind](name))  # type: ignore[arg-type]
        else:
            raise ValueError(
                f"kinds: {kind!r} of {name!r} is unknown; expected number, boolean, category, set, text, date, a "
                "format of dates such as '%d/%m/%Y', or the number 1234.5 as the file writes it, such as '1.234,5 €'"
            )
    return columns


def kind_of(written: str) -> str:
    """The kind that a value of `kinds` says: "number" for a style of numbers, "date" for formats of dates."""
    return "number" if Style.parse(written) else "date" if "%" in written else written


def describe_raw(raw: Raw) -> str:
    """How a column was understood, such as "number, money in $, 3 missing"."""
    about: list[str] = [raw.kind]
    if raw.kind == "date" and raw.format:
        about.append(f"written {' or '.join(raw.format.split(SEPARATOR))}")
    elif raw.format and (style := Style.parse(raw.format)):
        about += [style.about] if style.about else []
    if raw.kind == "category":
        about.append(f"{raw.values.drop_nulls().n_unique():,} different words")
    missing = missing_in(raw)
    return ", ".join(about + [f"{missing:,} missing"] * bool(missing))


def missing_in(raw: Raw) -> int:
    """The number of missing values of a column."""
    words = raw.kind in ("category", "set", "text")
    return int(raw.values.null_count() if words else np.isnan(raw.values).sum())


def place_of(words: Any, known: Sequence[str]) -> np.ndarray:
    """The index (n,) int32 of each word among the known ones; the number of known ones for other or missing words."""
    import polars as pl

    count = len(known)
    if not count:
        return np.zeros(len(words), np.int32)
    indices = pl.int_range(count, dtype=pl.Int32, eager=True)
    return words.replace_strict(pl.Series(known), indices, default=count).to_numpy().astype(np.int32)


def _fit(name: str, raw: Raw, train: np.ndarray, requested: bool) -> Column:
    if raw.kind == "category":
        return _fit_words(name, raw.values, train, requested)
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


def _fit_words(name: str, words: Any, train: np.ndarray, requested: bool) -> Column:
    import polars as pl

    in_train = words.alias("word").filter(pl.Series(train))
    counts = in_train.drop_nulls().value_counts().sort("word")
    known = counts.filter(pl.col("count") > 1)["word"].to_list()
    gaps = bool(in_train.null_count())
    left_out = ""
    if not requested and counts.height > ONE_HOT and counts.height > len(in_train) / 2:
        spaces = in_train.str.count_matches(" ").mean() or 0.0
        what = "word" if spaces < SPACES else "text"
        left_out = f"nearly every row has a different {what} ({counts.height:,} in {len(in_train):,} training rows)"
        if what == "text":
            left_out += f"; kinds: {{{name}: text}} makes it an input, and texts with labels are a source of kind: text"
    elif counts.height < 2 and not (gaps and counts.height):
        left_out = "the same in every training row"
    elif not known:
        left_out = "no word occurs in two training rows"
    return Column(name, "category", gaps=gaps, words=() if left_out else tuple(known), left_out=left_out)


def _split(values: Any) -> Any:
    """The words of each row's set, as a polars Series of lists; [""] for missing values."""
    return values.fill_null("").str.strip_chars().str.replace_all(SEPARATORS, "|").str.split("|")


def _fit_set(name: str, values: Any, train: np.ndarray) -> Column:
    import polars as pl

    counts = _split(values.filter(pl.Series(train))).explode().alias("word").value_counts().sort("word")
    words = tuple(counts.filter((pl.col("word") != "") & (pl.col("count") > 1))["word"].to_list())
    return Column(name, "set", words=words, left_out="" if words else "no word occurs in two training rows")


def _set_or_text(column: Column, values: Any) -> np.ndarray:
    """The features (n, f) of a set or a text."""
    if column.kind == "text":
        from kshot.data.text.features import hashed_ngrams

        texts = values.fill_null("").to_list()
        return hashed_ngrams(texts, of="words", ngrams=(1, 1), width=HASHED).take(np.arange(len(texts))).numpy()
    lists = _split(values)
    row = np.repeat(np.arange(len(lists)), lists.list.len().to_numpy())
    word = place_of(lists.explode(), column.words)
    known = word < len(column.words)
    table = word_table(column)[: len(column.words), : min(len(column.words), ONE_HOT)]
    features = np.zeros((len(lists), table.shape[1]), np.float32)
    np.add.at(features, row[known], table[word[known]])
    return features if len(column.words) > ONE_HOT else np.minimum(features, 1)


def word_table(column: Column) -> np.ndarray:
    r"""The features of each index: of every word, of an unknown one, of a missing one.

    Few words are one-hot. Many get codes: signs $\pm 1 / \sqrt{32}$ given by a hash of the word. They are a random
    projection of the one-hot vectors, which preserves lengths and distances in expectation: words stay distinguishable
    where feature hashing would have collisions, and no embedding has to be learned from few rows.

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
    table[count:, ONE_HOT:] = np.eye(1 + column.gaps)
    return table


def _calendar(seconds: np.ndarray, column: Column) -> np.ndarray:
    """The features (..., f) of dates: linear, and sine and cosine of the phase in the year, the week and the day."""
    missing = np.isnan(seconds)
    seconds = np.where(missing, column.mean, seconds)
    parts = [(seconds - column.mean) / column.std]
    for phase in (seconds / YEAR, (seconds - MONDAY) / WEEK, seconds / DAY)[: 3 if column.clock else 2]:
        parts += [np.sin(2 * np.pi * phase), np.cos(2 * np.pi * phase)]
    features = np.stack(parts, -1) * ~missing[..., None]
    return np.concatenate([features, missing[..., None]], -1) if column.gaps else features
