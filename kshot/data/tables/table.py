"""Opening tables: CSV, TSV, NDJSON and Parquet become one `Table`, and every mistake in one gets a file and a line.

Columns of a text file are text until they're asked for as numbers, labels or times; a value that is none is a fault.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np

from kshot.annotations import OptionsOf
from kshot.data.tables import csv

if TYPE_CHECKING:
    import polars

Kind = Literal["number", "boolean", "category", "date", "set", "text"]
"""What a column holds."""

SUFFIXES = {".csv": "csv", ".tsv": "csv", ".tab": "csv", ".txt": "csv",
            ".ndjson": "ndjson", ".jsonl": "ndjson", ".parquet": "parquet", ".pq": "parquet"}  # fmt: skip
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "#N/A")
"""What stands for a missing value in a file of text."""
DATES = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f",
         "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")  # fmt: skip
"""How dates are written where nothing is said: as ISO 8601 has it, in UTC where no offset is given."""

SHOWN = 5  # faults told in full
MIXED = 0.9  # a column with so many numbers among its values is meant to hold numbers


class Reading(NamedTuple):
    """How a file of text is written, where it can't be told from the file.

    Attributes:
        delimiter: what stands between values; found by default.
        encoding: of the file; UTF-8, or what its byte order mark says, by default.
        decimal: "." or ","; where it's given, the other one may group thousands, as may spaces and apostrophes.
        missing: what stands for a missing value, besides nothing; `MISSING` by default.
    """

    delimiter: str | None = None
    encoding: str | None = None
    decimal: Literal[".", ","] | None = None
    missing: Sequence[str] | None = None


PLAIN = Reading()

ReadingOptions = Annotated[Mapping[str, Any], OptionsOf(Reading)]
"""The fields of `Reading` by name."""


class Table:
    """A table as it was read, and what was found wrong with its rows.

    Attributes:
        path: the file.
        frame: its rows as a polars DataFrame.
        reading: how the file was read.
        typed: whether its format knows types (NDJSON, Parquet), so that text is never a number in disguise.
        faults: what is wrong with rows, so far, in words; the first few of each kind. See `settle`.
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
        self._unit = "row" if path.suffix.lower() in (".parquet", ".pq") else "line"
        self._bad = np.zeros(frame.height, bool)
        self._lost = len(lost)  # records that never became a row

    def __len__(self) -> int:
        return len(self._bad)

    def place(self, row: int, column: str | None = None) -> str:
        """Where a row stands, for a sentence: "sales.csv, line 12, column 'price'"."""
        number = row + self._offset if self._lines is None else int(self._lines[row])
        return f"{self.path}, {self._unit} {number}" + (f", column {column!r}" if column else "")

    def need(self, *names: str) -> None:
        """Raise `ValueError` where the table lacks a column, naming the nearest it has."""
        for name in names:
            if name not in self.frame.columns:
                raise _no_column(self.path, name, self.frame.columns)

    def kind(self, name: str) -> Kind:
        """What a column holds: its type, or for text what nearly all its values can be read as.

        Raises:
            ValueError: lists or records in the column, or dates that can be read in more than one way.
        """
        import polars as pl

        series = self.frame[name]
        kind = series.dtype
        if kind.is_numeric() or kind == pl.Null or kind == pl.Duration:
            return "number"
        if kind == pl.Boolean:
            return "boolean"
        if kind in (pl.Date, pl.Datetime):
            return "date"
        if kind not in (pl.String, pl.Categorical, pl.Enum):
            raise ValueError(
                f"{self.path}: column {name!r} holds {kind}, which kshot cannot take; leave it out by 'ignore'"
            )
        text = self._text(name).drop_nulls()
        if not self.typed:
            numbers = self._parsed(text).is_not_null().sum()
            if numbers and numbers >= MIXED * len(text):
                return "number"
            if len(text) and text.str.to_lowercase().is_in(["true", "false", "yes", "no"]).all():
                return "boolean"
        if len(text) == 0:
            return "number" if not self.typed else "category"
        if text.str.contains(r"^\d{4}-\d{2}-\d{2}").all():
            return "date"
        if text.str.contains(r"^\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b").all():
            raise ValueError(
                f"{self.path}: column {name!r} holds dates such as {text[0]!r}, and day and month cannot be told "
                f'apart: say how they are written, as in kinds: {{{name}: "%d/%m/%Y"}}, or take them as words by '
                f"kinds: {{{name}: category}}"
            )
        return "category"

    def numbers(self, name: str) -> np.ndarray:
        """A column as float64 (rows,), NaN where a value is missing; what is no finite number is a fault."""
        import polars as pl

        series = self.frame[name]
        if series.dtype in (pl.String, pl.Categorical, pl.Enum):
            text = self._text(name)
            values = self._parsed(text)
            wrong = values.is_null() & text.is_not_null()
            self._fault(name, wrong, text, lambda value: f"{value!r} is no number{self._advice(value)}")
        elif series.dtype == pl.Boolean or series.dtype.is_numeric() or series.dtype == pl.Null:
            values = series.cast(pl.Float64)
        elif series.dtype == pl.Duration:
            values = series.dt.total_seconds(fractional=True)
        else:
            raise ValueError(f"{self.path}: column {name!r} holds {series.dtype}, not numbers")
        infinite = values.is_infinite().fill_null(False).to_numpy()
        self._fault(name, infinite, values, lambda value: f"{value} is not finite; write nothing where it is not known")
        found = (values.fill_null(np.nan) if values.null_count() else values).to_numpy()
        return np.where(infinite, np.nan, found) if infinite.any() else found

    def booleans(self, name: str) -> np.ndarray:
        """A column as float64 (rows,): 1 for true or yes, 0 for false or no, NaN where a value is missing."""
        import polars as pl

        if self.frame.schema[name] == pl.Boolean:
            return self.numbers(name)
        if self.frame.schema[name].is_numeric():
            found = self.numbers(name)
            self._fault(name, ~np.isin(found, [0, 1]) & ~np.isnan(found), self.frame[name], _no_boolean)
            return found
        text = self._text(name)
        low = text.str.to_lowercase()
        yes, no = low.is_in(["true", "yes", "1"]), low.is_in(["false", "no", "0"])
        self._fault(name, text.is_not_null() & ~(yes | no), text, _no_boolean)
        return np.where(yes.fill_null(False), 1.0, np.where(no.fill_null(False), 0.0, np.nan))

    def labels(self, name: str) -> polars.Series:
        """A column as words, null where a value is missing. A whole number is the same word however it is stored."""
        return self._text(name)

    def keys(self, name: str) -> polars.Series:
        """A column that names things: whole numbers as they are, which is cheap, all else as words."""
        return self.frame[name] if self.frame.schema[name].is_integer() else self._text(name)

    def seconds(self, name: str, format: str | None = None) -> np.ndarray:
        """A column of dates as float64 (rows,) seconds since 1970, UTC; NaN where a value is missing.

        Args:
            name: the column.
            format: how dates are written, such as "%d/%m/%Y"; ISO 8601 by default.
        """
        import polars as pl

        series = self.frame[name]
        if series.dtype not in (pl.Date, pl.Datetime):
            text = self._text(name)
            with sentences(self.path):
                series = pl.Series(name, [None] * len(text), pl.Datetime("us"))
                for form in [format] if format else DATES:
                    series = series.fill_null(_dates(text, form))
                    if series.null_count() == text.null_count():
                        break
            written = format or "an ISO date such as 2024-05-31 or 2024-05-31 13:45"
            self._fault(name, series.is_null() & text.is_not_null(), text, lambda value: f"{value!r} is not {written}")
        if series.dtype == pl.Date:
            found = series.cast(pl.Int32).cast(pl.Float64) * 86400
        else:
            found = series.dt.timestamp("us").cast(pl.Float64) / 1e6
        return found.fill_null(np.nan).to_numpy()

    def missing(self, name: str, where: np.ndarray, why: str) -> None:
        """Mark rows (rows,) bool as bad since they lack a value that none can do without."""
        self._fault(name, where & ~self._bad, self.frame[name], lambda value: f"the value is missing; {why}")

    def bad(self, name: str, where: np.ndarray, why: str) -> None:
        """Mark rows (rows,) bool as bad for a reason of the caller's."""
        self._fault(name, where, self.frame[name], lambda value: f"{value!r} {why}")

    @property
    def good(self) -> np.ndarray:
        """The rows (rows,) bool that nothing was found wrong with, so far."""
        return ~self._bad

    def settle(self, bad_rows: Literal["error", "drop"] | None = None) -> np.ndarray:
        """The rows (rows,) bool that are good.

        Args:
            bad_rows: what the user wants done with the others; None where no row may be left out.

        Raises:
            ValueError: there are bad rows, and dropping them was not allowed; or no good row is left.
        """
        count = self.dropped["rows"]
        if count and bad_rows != "drop":
            told = "\n".join(self.faults[:SHOWN])
            more = f"\nbad rows in all: {count:,} of {len(self) + self._lost:,}" if count > 1 else ""
            advice = "\nMend them, or leave such rows out by bad_rows: drop" if bad_rows else ""
            raise ValueError(f"{told}{more}{advice}")
        if self._bad.all():
            raise ValueError(
                f"{self.path} holds no good row; the first is {self.faults[0]}"
                if self.faults
                else f"{self.path} holds no rows"
            )
        return ~self._bad

    @property
    def dropped(self) -> dict[str, Any]:
        """How many rows are bad, and the first of them in words."""
        return {"rows": int(self._bad.sum()) + self._lost, "first": self.faults[:SHOWN]}

    def release(self, *keep: str) -> None:
        """Give back the memory of the columns that are not among `keep`; what was read of them stays."""
        self.frame = self.frame.select(keep)

    def _fault(self, name: str, where: Any, values: Any, why: Any) -> None:
        rows = np.flatnonzero(where if isinstance(where, np.ndarray) else where.fill_null(False).to_numpy())
        self._bad[rows] = True
        for row in rows[:SHOWN].tolist():
            self.faults.append(f"{self.place(row, name)}: {why(values[row])}")

    def _text(self, name: str) -> polars.Series:
        import polars as pl

        series = self.frame[name]
        if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
            raise ValueError(f"{self.path}: column {name!r} holds {series.dtype}, not single values")
        if series.dtype.is_float():
            whole = series.is_finite() & (series == series.round()) & (series.abs() < 2.0**63)
            text = pl.select(
                pl.when(whole)
                .then(series.cast(pl.Int64, strict=False).cast(pl.String))
                .otherwise(series.fill_nan(None).cast(pl.String))
            ).to_series()
        elif series.dtype in (pl.String, pl.Categorical, pl.Enum):
            text = series.cast(pl.String).str.strip_chars()
            text = pl.select(
                pl.when(text.is_in(list({"", *(MISSING if self.reading.missing is None else self.reading.missing)})))
                .then(None)
                .otherwise(text)
            ).to_series()
        else:
            text = series.cast(pl.String)
        return text.alias(name)

    def _parsed(self, text: polars.Series) -> polars.Series:
        """Numbers of a column of text, null where there is none; "inf" is infinity."""
        import polars as pl

        decimal = self.reading.decimal
        if decimal:
            group = f"[{'.' if decimal == ',' else ','} '\u2019\u00a0\u202f]"
            grouped = text.str.contains(rf"^[+-]?\d{{1,3}}({group}\d{{3}})+({'[.]' if decimal == '.' else ','}\d*)?$")
            plain = text.str.replace_all(group, "")
            text = pl.select(pl.when(grouped).then(plain).otherwise(text)).to_series()
            if decimal == ",":
                dotted = text.str.contains(".", literal=True)  # a dot that groups nothing
                text = pl.select(pl.when(dotted).then(None).otherwise(text.str.replace(",", "."))).to_series()
        return text.cast(pl.Float64, strict=False)

    def _advice(self, value: str) -> str:
        kept = "; mend it, name it among reading.missing, or take the column as words by kinds"
        if self.reading.decimal or not all(part.isdigit() for part in value.lstrip("+-").replace(".", ",").split(",")):
            return kept
        return '; set reading.decimal to "," if its comma is a decimal comma, to "." if it groups thousands'


def _no_boolean(value: Any) -> str:
    return f"{value!r} is neither true nor false"


def _dates(text: polars.Series, form: str) -> polars.Series:
    import polars as pl

    found = (
        text.str.to_datetime(form, strict=False, time_unit="us")
        if _has_clock(form)
        else text.str.to_date(form, strict=False)
    )
    if getattr(found.dtype, "time_zone", None):
        found = found.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return found.cast(pl.Datetime("us"))


def _has_clock(form: str) -> bool:
    return any(code in form for code in ("%H", "%I", "%T", "%R", "%s", "%z", "%+"))


def open_table(
    path: Path | str, reading: Reading = PLAIN, *, columns: Sequence[str] | None = None, ignore: Sequence[str] = ()
) -> Table:
    """Open a CSV, TSV, NDJSON or Parquet file; the format is told by the suffix.

    Args:
        path: the file.
        reading: how a file of text is written.
        columns: read these alone, all by default.
        ignore: read all but these.

    Raises:
        ValueError: no such file, a suffix that is not known, a file that is empty, has a header alone, cannot be read,
            or names a column twice or not at all.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "sales.csv"
        >>> _ = path.write_text("store;price\\na;1.5\\nb;2\\n")
        >>> table = open_table(path)
        >>> table.kind("price"), table.numbers("price").tolist()
        ('number', [1.5, 2.0])
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give one file of {', '.join(SUFFIXES)}")
    if not path.is_file():
        near = [str(other.name) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        found = difflib.get_close_matches(path.name, near, 1)
        raise ValueError(f"there is no file {path}" + (f"; did you mean {found[0]}?" if found else ""))
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise ValueError(f"{path}: the suffix {path.suffix!r} is not known; a table is one of {', '.join(SUFFIXES)}")
    opener = {"csv": _open_csv, "ndjson": _open_ndjson, "parquet": _open_parquet}[form]

    def choose(names: list[str]) -> list[str]:
        chosen = [name for name in names if name not in ignore] if columns is None else list(dict.fromkeys(columns))
        if lost := [name for name in (*chosen, *ignore) if name not in names]:
            raise _no_column(path, lost[0], names)
        return chosen

    with sentences(path):
        table = opener(path, reading, choose)
    if not len(table) and not table.faults:
        raise ValueError(f"{path} holds a header but no rows")
    return table


@contextmanager
def sentences(path: Path) -> Iterator[None]:
    """Turn what polars and the file system say into a `ValueError` that names the file."""
    import polars as pl

    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read: {first}") from None


def _no_column(path: Path, name: str, known: list[str]) -> ValueError:
    """That a table lacks a column: with the nearest it has, or a word on the delimiter if that may be to blame."""
    close = difflib.get_close_matches(name, known, 1, 0.5) or [own for own in known if own.lower() == name.lower()]
    split = [delimiter for delimiter in csv.DELIMITERS if len(known) == 1 and delimiter in known[0]]
    if split:
        word = csv.DELIMITERS[split[0]]
        hint = f"; its one column looks like several with {word} between: set reading.delimiter to {split[0]!r}"
    elif close:
        hint = f": did you mean {close[0]!r}?"
    else:
        hint = f"; it has {', '.join(map(repr, known[:20]))}" + (", …" if len(known) > 20 else "")
    return ValueError(f"{path} has no column {name!r}{hint}")


Choice = Callable[[list[str]], list[str]]
"""From the columns that a file has to those to read."""


def _open_csv(path: Path, reading: Reading, choose: Choice) -> Table:
    import polars as pl

    text = csv.decode(path.read_bytes(), reading.encoding, str(path))
    delimiter = reading.delimiter or ("\t" if path.suffix.lower() in (".tsv", ".tab") else csv.find_delimiter(text))
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n':
        raise ValueError(
            f"{path}: a delimiter is one character of ASCII, such as ',' ';' '|' or a tab, got {delimiter!r}"
        )
    found = csv.records(text, delimiter, str(path))
    names = _header(found.header, path, delimiter)
    wanted = choose(names)
    frame = pl.read_csv(
        found.text,
        separator=delimiter,
        infer_schema=False,
        new_columns=names,
        columns=[names.index(name) for name in wanted],
    ).select(wanted)
    del text
    expected = len(found.lines) if found.lines is not None else frame.height
    if frame.height != expected:
        raise ValueError(
            f"{path} cannot be read: its lines hold {expected} records, but {frame.height} rows were found"
        )
    lost = [f"{path}, line {line}: {what}" for line, what in found.bad]
    return Table(path, frame, reading, typed=False, lines=found.lines, offset=2, lost=lost)


def _header(header: list[str], path: Path, delimiter: str) -> list[str]:
    names = [name.strip() for name in header]
    if empty := [number for number, name in enumerate(names, 1) if not name]:
        raise ValueError(f"{path}, line 1: column {empty[0]} has no name in the header; give each column one")
    _check_names(names, path)

    def number(word: str) -> bool:
        try:
            float(word)
        except ValueError:
            return False
        return True

    if all(map(number, names)):
        raise ValueError(
            f"{path}, line 1: the header holds numbers only ({delimiter.join(names[:5])}); a file needs a first line "
            "with the columns' names"
        )
    return names


def _check_names(names: Sequence[str], path: Path) -> None:
    twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    if twice:
        places = [str(number) for number, name in enumerate(names, 1) if name == twice[0]]
        raise ValueError(
            f"{path}: {' and '.join(places)} are both columns {twice[0]!r}; give each column a name of its own"
        )


def _open_ndjson(path: Path, reading: Reading, choose: Choice) -> Table:
    import polars as pl

    text = csv.decode(path.read_bytes(), reading.encoding, str(path))
    if not text.strip():
        raise ValueError(f"{path} is empty; it needs one JSON object a line")
    lost: list[str] = []
    lines = None
    try:
        frame = pl.read_ndjson(text, infer_schema_length=None)
        whole = frame.height == text.rstrip(b"\n").count(b"\n") + 1
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        whole = False
    if not whole:  # blank lines, lines that are no objects, or columns of several types
        rows, numbers, lost = _json_lines(text, path)
        lines = np.array(numbers, np.int64)
        names = list(dict.fromkeys(name for row in rows for name in row))
        frame = pl.DataFrame({name: _one_type([row.get(name) for row in rows]) for name in names}, strict=False)
    return Table(path, frame.select(choose(frame.columns)), reading, lines=lines, lost=lost)


def _json_lines(text: bytes, path: Path) -> tuple[list[dict[str, Any]], list[int], list[str]]:
    """The objects of a file that polars refused, their lines, and what is wrong with the other lines."""
    rows, numbers, lost = [], [], []
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=lambda word: None if word == "NaN" else float(word))
        except (ValueError, RecursionError) as error:
            lost.append(f"{path}, line {number}: this is no JSON: {error}")
            continue
        if not isinstance(row, dict):
            lost.append(f'{path}, line {number}: expected an object such as {{"name": 1}}, got {row!r:.40}')
            continue
        rows.append(row)
        numbers.append(number)
    return rows, numbers, lost


def _one_type(values: list[Any]) -> list[Any]:
    """A column's values as numbers if they are, as booleans if they are, else as words."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return [None if value is None else float(value) if abs(value) < 1e300 else float("inf") for value in values]
    if kinds == {bool}:
        return values
    return [None if value is None else value if isinstance(value, str) else json.dumps(value) for value in values]


def _open_parquet(path: Path, reading: Reading, choose: Choice) -> Table:
    import polars as pl

    if not path.stat().st_size:
        raise ValueError(f"{path} is empty")
    lazy = pl.scan_parquet(path, glob=False)
    return Table(path, lazy.select(choose(lazy.collect_schema().names())).collect(), reading)
