"""A table as it was read: columns as numbers, labels or dates, and each invalid value with its file and line.

Columns of a text file stay text until they are requested as another type; a value that cannot be converted is a fault
of its row.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np

from kshot.annotations import OptionsOf
from kshot.data.tables.csv import DELIMITERS
from kshot.data.tables.dates import UnclearDates, formats_of, parse_dates
from kshot.data.tables.numerals import Evidence, Style, Unclear, evidence, parse, style_of

if TYPE_CHECKING:
    import polars

Kind = Literal["number", "boolean", "category", "date", "set", "text"]
"""Type of the content of a column."""

MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "#N/A")
"""Markers of missing values in a text file."""

WITH_LINES = (".csv", ".tsv", ".tab", ".txt", ".ndjson", ".jsonl", ".gz", ".zst")
SHOWN = 5  # faults reported in full
MIXED = 0.9  # a text column with this share of numbers is meant to hold numbers


class Reading(NamedTuple):
    """Format of a text file, where it cannot be detected, and the query of a database.

    Attributes:
        delimiter: between values; detected by default.
        encoding: of the file; by default UTF-8, or what its byte order mark says.
        decimal: "." or ","; the other one may group thousands, as may spaces and apostrophes. By default what the
            numbers of a column tell.
        missing: markers of missing values, besides the empty one; `MISSING` by default.
        query: in SQL, the rows to read where the path is the URL of a database.
    """

    delimiter: str | None = None
    encoding: str | None = None
    decimal: Literal[".", ","] | None = None
    missing: Sequence[str] | None = None
    query: str | None = None


PLAIN = Reading()

ReadingOptions = Annotated[Mapping[str, Any], OptionsOf(Reading)]
"""The fields of `Reading` by name."""


class Table:
    """A table and the faults found in its rows so far.

    Args:
        path, frame, reading: the file, or what is said instead of one; its rows; and the format in which it was read.
        typed: whether the format has types (NDJSON, Parquet, in memory), so that text is never a number.
        lines: the line of each row (num_rows,); None if row r is line r + `offset`.
        offset: line of the first row.
        lost: descriptions of records that could not become rows.

    Attributes:
        faults: descriptions of invalid rows, the first few of each kind. See `settle`.
    """

    def __init__(
        self,
        path: Path,
        frame: polars.DataFrame,
        reading: Reading = PLAIN,
        *,
        typed: bool = True,
        lines: np.ndarray | None = None,
        offset: int = 1,
        lost: Sequence[str] = (),
    ) -> None:
        self.path, self.frame, self.reading, self.typed = path, frame, reading, typed
        self.faults = list(lost[:SHOWN])
        self._lines, self._offset = lines, offset
        self._unit = "line" if path.suffix.lower() in WITH_LINES else "row"
        self._bad = np.zeros(frame.height, bool)
        self._num_lost = len(lost)

    def __len__(self) -> int:
        return len(self._bad)

    def place(self, row: int, column: str | None = None) -> str:
        """The location of a row for messages, such as "sales.csv, line 12, column 'price'"."""
        number = row + self._offset if self._lines is None else int(self._lines[row])
        return f"{self.path}, {self._unit} {number}" + (f", column {column!r}" if column else "")

    def need(self, *names: str) -> None:
        """Raise ValueError if a column is missing, suggesting the most similar name."""
        for name in names:
            if name not in self.frame.columns:
                raise missing_column(self.path, name, self.frame.columns)

    def kind(self, name: str) -> str:
        """The kind of a column: by its type, or for text by what (nearly) all values can be parsed as.

        Numbers that are not written plainly give their style, such as "1.234,5 €", and dates that are not ISO 8601
        their formats, such as "%d/%m/%Y"; `read_columns` takes these too. Lists, records, and numbers and dates that
        can be understood in two ways raise ValueError.
        """
        import polars as pl

        series = self.frame[name]
        dtype = series.dtype
        if dtype.is_numeric() or dtype == pl.Null or dtype == pl.Duration:
            return "number"
        if dtype == pl.Boolean:
            return "boolean"
        if dtype in (pl.Date, pl.Datetime):
            return "date"
        if dtype not in (pl.String, pl.Categorical, pl.Enum):
            raise ValueError(
                f"{self.path}: column {name!r} holds {dtype}, which kshot cannot use; exclude it by 'ignore'"
            )
        text = self.labels(name).drop_nulls()
        if not len(text):
            return "category" if self.typed else "number"
        style = self._style(name, text)
        if isinstance(style, Unclear):
            raise ValueError(
                f"{self.path}: column {name!r} holds numbers, {style.why}. Write in kinds how the file would write the "
                f'number 1234.5, as in kinds: {{{name}: "1,234.5"}} or kinds: {{{name}: "1.234,5"}}, or treat them as '
                f"words by kinds: {{{name}: category}}"
            )
        if style is not None:
            plain = style == Style() and not self._needs_style(text)
            return "number" if plain or (self.reading.decimal and not style.unit) else str(style)
        if not self.typed and text.str.to_lowercase().is_in(["true", "false", "yes", "no"]).all():
            return "boolean"
        try:
            formats = formats_of(text, MIXED)
        except UnclearDates as error:
            raise ValueError(
                f"{self.path}: column {name!r} holds dates {error}: give their format, as in "
                f'kinds: {{{name}: "%d/%m/%Y"}}, or treat them as words by kinds: {{{name}: category}}'
            ) from None
        return formats or "category"

    def share_of_numbers(self, name: str) -> float:
        """The share of the values of a column of words that can be parsed as plain numbers; 0 for other columns."""
        import polars as pl

        if self.typed or self.frame.schema[name] not in (pl.String, pl.Categorical, pl.Enum):
            return 0.0
        text = self.labels(name).drop_nulls()
        return float(text.cast(pl.Float64, strict=False).is_not_null().sum()) / max(len(text), 1)

    def numbers(self, name: str, style: str | None = None) -> np.ndarray:
        """A column as float64 (num_rows,), NaN for missing values; other values than finite numbers are faults.

        `style` is how the number 1234.5 would be written, such as "1.234,5 €"; by default what `kind` finds.
        """
        import polars as pl

        series = self.frame[name]
        if series.dtype in (pl.String, pl.Categorical, pl.Enum):
            text = self.labels(name)
            values = self._parse_numbers(name, text, style)
            invalid = values.is_null() & text.is_not_null()
            self._add_faults(name, invalid, text, lambda value: f"{value!r} is not a number{self._hint(value, style)}")
        elif series.dtype == pl.Boolean or series.dtype.is_numeric() or series.dtype == pl.Null:
            if style and "%" in style and series.dtype.is_numeric():
                raise ValueError(
                    f"{self.path}: column {name!r} holds plain numbers, and was in percent before: write them with a %"
                )
            values = series.cast(pl.Float64)
        elif series.dtype == pl.Duration:
            values = series.dt.total_seconds(fractional=True)
        else:
            raise ValueError(f"{self.path}: column {name!r} holds {series.dtype}, not numbers")
        infinite = values.is_infinite().fill_null(False).to_numpy()
        self._add_faults(name, infinite, values, lambda value: f"{value} is not finite; leave unknown values empty")
        array = (values.fill_null(np.nan) if values.null_count() else values).to_numpy()
        return np.where(infinite, np.nan, array) if infinite.any() else array

    def booleans(self, name: str) -> np.ndarray:
        """A column as float64 (num_rows,): 1 for true or yes, 0 for false or no, NaN for missing values."""
        import polars as pl

        why = "is neither true nor false"
        if self.frame.schema[name] == pl.Boolean:
            return self.numbers(name)
        if self.frame.schema[name].is_numeric():
            values = self.numbers(name)
            self.bad(name, ~np.isin(values, [0, 1]) & ~np.isnan(values), why)
            return values
        text = self.labels(name)
        lower = text.str.to_lowercase()
        yes, no = lower.is_in(["true", "yes", "1"]), lower.is_in(["false", "no", "0"])
        self._add_faults(name, text.is_not_null() & ~(yes | no), text, lambda value: f"{value!r} {why}")
        return yes.cast(pl.Float64).set(~(yes | no), None).fill_null(np.nan).to_numpy()

    def labels(self, name: str) -> polars.Series:
        """A column as words, null for missing values. An integer gives the same word however it is stored."""
        import polars as pl

        series = self.frame[name]
        if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
            raise ValueError(f"{self.path}: column {name!r} holds {series.dtype}, not single values")
        if series.dtype.is_float():
            whole = series.is_finite() & (series == series.round()) & (series.abs() < 2.0**63)
            integers = series.cast(pl.Int64, strict=False).cast(pl.String)
            text = integers.zip_with(whole.fill_null(False), series.fill_nan(None).cast(pl.String))
        elif series.dtype in (pl.String, pl.Categorical, pl.Enum):
            text = series.cast(pl.String).str.strip_chars()
            markers = {"", *(MISSING if self.reading.missing is None else self.reading.missing)}
            text = text.set(text.is_in(list(markers)), None)
        elif series.dtype == pl.Duration:
            text = series.dt.total_seconds(fractional=True).cast(pl.String)
        else:
            text = series.cast(pl.String)
        return text.alias(name)

    def keys(self, name: str) -> polars.Series:
        """A column of identifiers: integers as they are, which is cheap, everything else as words."""
        return self.frame[name] if self.frame.schema[name].is_integer() else self.labels(name)

    def seconds(self, name: str, format: str | None = None) -> np.ndarray:
        """A column of dates as float64 (num_rows,) seconds since 1970, UTC; NaN for missing values.

        `format` is that of the dates, such as "%d/%m/%Y", or several joined by " | "; ISO 8601 by default.
        """
        import polars as pl

        series = self.frame[name]
        if series.dtype not in (pl.Date, pl.Datetime):
            text = self.labels(name)
            with named_errors(self.path):
                series = parse_dates(text, format)
            expected = format or "an ISO date such as 2024-05-31 or 2024-05-31 13:45"
            invalid = series.is_null() & text.is_not_null()
            self._add_faults(name, invalid, text, lambda value: f"{value!r} is not {expected}")
        if series.dtype == pl.Date:
            seconds = series.cast(pl.Int32).cast(pl.Float64) * 86400
        else:
            seconds = series.dt.timestamp("us").cast(pl.Float64) / 1e6
        return seconds.fill_null(np.nan).to_numpy()

    def missing(self, name: str, where: np.ndarray, why: str) -> None:
        """Mark rows (num_rows,) bool as bad because a required value is missing."""
        self._add_faults(name, where & ~self._bad, self.frame[name], lambda value: f"the value is missing; {why}")

    def bad(self, name: str, where: np.ndarray, why: str) -> None:
        """Mark rows (num_rows,) bool as bad for a reason of the caller."""
        self._add_faults(name, where, self.frame[name], lambda value: f"{value!r} {why}")

    @property
    def good(self) -> np.ndarray:
        """The rows (num_rows,) bool without a fault so far."""
        return ~self._bad

    def settle(self, bad_rows: Literal["error", "drop"] | None = None) -> np.ndarray:
        """Return the valid rows (num_rows,) bool, or raise ValueError if there are faults or no row is valid.

        `bad_rows` "drop" excludes rows with faults, "error" offers that in the message, None does not.
        """
        num_bad = self.dropped["rows"]
        if num_bad and bad_rows != "drop":
            faults = "\n".join(self.faults[:SHOWN])
            total = f"\nbad rows in all: {num_bad:,} of {len(self) + self._num_lost:,}" if num_bad > 1 else ""
            hint = "\nCorrect them, or leave such rows out by bad_rows: drop" if bad_rows else ""
            raise ValueError(f"{faults}{total}{hint}")
        if self._bad.all():
            fault = f"no valid row; the first fault is {self.faults[0]}" if self.faults else "no rows"
            raise ValueError(f"{self.path} has {fault}")
        return self.good

    @property
    def dropped(self) -> dict[str, Any]:
        """The number of bad rows ("rows") and descriptions of the first ("first")."""
        return {"rows": int(self._bad.sum()) + self._num_lost, "first": self.faults[:SHOWN]}

    def release(self, *keep: str) -> None:
        """Free the memory of all columns but `keep`."""
        self.frame = self.frame.select(keep)

    def _add_faults(self, name: str, where: Any, values: Any, describe: Callable[[Any], str]) -> None:
        rows = np.flatnonzero(where if isinstance(where, np.ndarray) else where.fill_null(False).to_numpy())
        self._bad[rows] = True
        self.faults += [f"{self.place(row, name)}: {describe(values[row])}" for row in rows[:SHOWN].tolist()]

    def _parse_numbers(self, name: str, text: polars.Series, style: str | None) -> polars.Series:
        """Numbers of a column of text, null where parsing fails; "inf" is infinity."""
        import polars as pl

        plain = text.cast(pl.Float64, strict=False)
        found = Style.parse(style) if style else self._style(name, text.drop_nulls())
        if not isinstance(found, Style):
            return plain
        if style is None and found == Style() and plain.null_count() == text.null_count():
            return plain
        values = parse(text, found)
        return values.fill_null(plain) if found.decimal == "." and not found.unit else values

    def _style(self, name: str, text: polars.Series) -> Style | Unclear | None:
        """How the numbers of a column are written, without missing ones; None if it does not hold numbers."""
        import polars as pl

        decimal = self.reading.decimal
        plain = text.cast(pl.Float64, strict=False).is_not_null()
        if plain.all() and decimal != ",":
            if self.typed:
                return None
            if decimal is None and _all_thousands(text) and (file := self._evidence(name)) and file.comma:
                return style_of(text, MIXED, file)
            return Style()
        if decimal:  # it is given; only the unit is open
            found = style_of(text, MIXED, Evidence(decimal == ".", decimal == ",", None, None))
            unit = found._replace(decimal=decimal) if isinstance(found, Style) else Style(decimal)
            enough = parse(text, unit).is_not_null().sum() >= MIXED * len(text)
            return None if self.typed and unit.unit == "" else unit if enough else None
        style = style_of(text, MIXED)
        if isinstance(style, Unclear) or (style is not None and _all_thousands(text)):
            style = style_of(text, MIXED, self._evidence(name))
        if style is None and not self.typed and plain.sum() >= MIXED * len(text):
            return Style()
        return style

    def _evidence(self, name: str) -> Evidence:
        """The evidence of the other columns of text for a decimal sign."""
        import polars as pl

        others = [other for other, dtype in self.frame.schema.items() if dtype == pl.String and other != name]
        found = [each for other in others if (each := evidence(self.labels(other).drop_nulls()[:1000]))]
        return Evidence(sum(each.point for each in found), sum(each.comma for each in found), None, None)

    @staticmethod
    def _needs_style(text: polars.Series) -> bool:
        """Whether numbers without a unit, with a decimal point, are written with groups or in parentheses."""
        import polars as pl

        others = text.filter(text.cast(pl.Float64, strict=False).is_null())
        return bool(parse(others, Style()).is_not_null().any())

    def _hint(self, value: str, style: str | None) -> str:
        written = f" as the others, such as {style}" if style else ""
        return f"; correct it{written}, list it in reading.missing, or treat the column as words by kinds"


def _all_thousands(text: polars.Series) -> bool:
    """Whether each decimal sign stands before three digits, so that it may group thousands."""
    signs = text.filter(text.str.contains("[.,]"))
    return bool(len(signs)) and bool(signs.str.contains(r"^\D*[1-9]\d{0,2}[.,]\d{3}\D*$").all())


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn errors of polars and the file system into a `ValueError` that names the file."""
    import polars as pl

    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read: {first}") from None


def missing_column(path: Path, name: str, columns: Sequence[str]) -> ValueError:
    """The error for a missing column, with the most similar name, or a hint if the delimiter seems wrong."""
    same_letters = [column for column in columns if column.lower() == name.lower()]
    similar = difflib.get_close_matches(name, columns, 1, 0.5) or same_letters
    delimiters = [delimiter for delimiter in DELIMITERS if len(columns) == 1 and delimiter in columns[0]]
    if delimiters:
        word = DELIMITERS[delimiters[0]]
        hint = f"; its one column looks like several separated by {word}: set reading.delimiter to {delimiters[0]!r}"
    elif similar:
        hint = f": did you mean {similar[0]!r}?"
    else:
        hint = f"; it has {', '.join(map(repr, columns[:20]))}" + (", …" if len(columns) > 20 else "")
    return ValueError(f"{path} has no column {name!r}{hint}")
