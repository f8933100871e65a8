"""Opening of tables: CSV, TSV, NDJSON, JSON, Parquet and Excel files, results of SQL queries, and tables in memory."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kshot.bounded import home_expanded, open_file, parse_json
from kshot.data.tables import csv
from kshot.data.tables.extent import check_parquet, check_texts, check_workbook
from kshot.data.tables.frames import TableLike, is_path, opened
from kshot.data.tables.table import PLAIN, Reading, Table, missing_column, named_errors
from kshot.data.text_files import read_json, read_utf8

if TYPE_CHECKING:
    import polars

SUFFIXES = {".csv": "csv", ".tsv": "csv", ".tab": "csv", ".txt": "csv",
            ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "json", ".parquet": "parquet", ".pq": "parquet",
            ".xlsx": "excel", ".xls": "excel", ".xlsb": "excel", ".ods": "excel"}  # fmt: skip
PACKED = (".gz", ".zst")
"""Suffixes of compression, after that of a text, as in sales.csv.gz."""

Selection = Callable[[list[str]], list[str]]
"""From the columns of a file to those to read."""


def open_table(
    path: Path | str | TableLike,
    reading: Reading = PLAIN,
    *,
    columns: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
) -> Table:
    """Open a CSV, TSV, NDJSON, JSON, Parquet or Excel file, as its suffix says, a database, or a table in memory.

    A JSON file holds a list of objects, one for each row, or an object with a list for each column. Of an Excel file
    the first sheet is read, which needs the package fastexcel. Texts may be compressed by gzip or zstd.

    Args:
        path, reading: the file, and the format of a text file; or the URL of a database with a query, see `of_query`;
            or a table in memory, see `TableLike`.
        columns, ignore: columns to read, all by default; columns not to read.

    Raises:
        ValueError: no such file, an unknown suffix, a file that is empty, has only a header or cannot be read, or
            missing or duplicate column names; the errors of `of_query` and `of_memory`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "sales.csv"
        >>> _ = path.write_text("store;price\\na;1.5\\nb;2\\n")
        >>> table = open_table(path)
        >>> table.kind("price"), table.numbers("price").tolist()
        ('number', [1.5, 2.0])
    """
    if not is_path(path):
        return _of_frame(*opened(path, reading.query), reading, columns, ignore)
    path = home_expanded(cast("str", path))
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give one file of {', '.join(SUFFIXES)}")
    if not path.exists():
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        similar = difflib.get_close_matches(path.name, names, 1)
        raise ValueError(f"there is no file {path}" + (f"; did you mean {similar[0]}?" if similar else ""))
    form = SUFFIXES.get(suffix_of(path))
    if form is None:
        raise ValueError(f"{path}: the suffix {path.suffix!r} is not known; expected one of {', '.join(SUFFIXES)}")
    if path.suffix.lower() in PACKED and form in ("parquet", "excel"):
        raise ValueError(f"{path}: unpack it; only texts, such as sales.csv{path.suffix}, are read compressed")
    openers: dict[str, Callable[..., Table]] = {
        "csv": _open_csv, "ndjson": _open_ndjson, "json": _open_json, "parquet": _open_parquet, "excel": _open_excel,
    }  # fmt: skip
    opener = openers[form]

    def select(names: list[str]) -> list[str]:
        return _selected(path, names, columns, ignore)

    with named_errors(path):
        open_file(path).close()  # anything but a file, as a FIFO, is refused
        table = opener(path, reading, select)
    if not len(table) and not table.faults:
        raise ValueError(f"{path} has a header but no rows")
    return table


def _selected(path: Path, names: list[str], columns: Sequence[str] | None, ignore: Sequence[str]) -> list[str]:
    selected = [name for name in names if name not in ignore] if columns is None else list(dict.fromkeys(columns))
    if missing := [name for name in (*selected, *ignore) if name not in names]:
        raise missing_column(path, missing[0], names)
    return selected


def _of_frame(
    name: str, frame: polars.DataFrame, reading: Reading, columns: Sequence[str] | None, ignore: Sequence[str]
) -> Table:
    path = Path(name)
    if not frame.height:
        raise ValueError(f"{path} has no rows")
    return Table(path, frame.select(_selected(path, frame.columns, columns, ignore)), reading._replace(query=None))


def suffix_of(path: Path) -> str:
    """The suffix that says the format of a file, in lower case, such as ".csv" of sales.csv.gz."""
    return (path.with_suffix("") if path.suffix.lower() in PACKED else path).suffix.lower()


def _open_csv(path: Path, reading: Reading, select: Selection) -> Table:
    import polars as pl

    text = read_utf8(path, reading.encoding)
    delimiter = reading.delimiter or ("\t" if suffix_of(path) in (".tsv", ".tab") else csv.find_delimiter(text))
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n':
        raise ValueError(
            f"{path}: a delimiter must be one ASCII character, such as ',' ';' '|' or a tab, got {delimiter!r}"
        )
    records = csv.records(text, delimiter, str(path))
    names = _column_names(records.header, path, delimiter)
    selected = select(names)
    chosen = [names.index(name) for name in selected]
    frame = pl.read_csv(records.text, separator=delimiter, infer_schema=False, new_columns=names, columns=chosen)
    frame = frame.select(selected)
    expected = len(records.lines) if records.lines is not None else frame.height
    if frame.height != expected:
        raise ValueError(f"{path} cannot be read: expected {expected} rows from its lines, got {frame.height}")
    lost = [f"{path}, line {line}: {fault}" for line, fault in records.bad]
    return Table(path, frame, reading, typed=False, lines=records.lines, offset=2, lost=lost)


def _column_names(header: list[str], path: Path, delimiter: str) -> list[str]:
    names = [name.strip() for name in header]
    if len(names) > 1 and not names[0]:  # as pandas and R write the index
        names[0] = "index"
    if "" in names:
        raise ValueError(f"{path}, line 1: column {names.index('') + 1} has no name; name each column in the header")
    duplicates = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if duplicates:
        numbers = [str(number) for number, name in enumerate(names, 1) if name == duplicates[0]]
        raise ValueError(f"{path}: columns {' and '.join(numbers)} are both named {duplicates[0]!r}; rename one")
    try:
        list(map(float, names))
    except ValueError:  # not all of them are numbers
        return names
    raise ValueError(
        f"{path}, line 1: the header holds numbers only ({delimiter.join(names[:5])}); the first line must name the "
        "columns"
    )


def _open_ndjson(path: Path, reading: Reading, select: Selection) -> Table:
    import polars as pl

    text = read_utf8(path, reading.encoding)
    if not text.strip():
        raise ValueError(f"{path} is empty; expected one JSON object a line")
    lost: list[str] = []
    lines = None
    try:
        frame = pl.read_ndjson(text, infer_schema_length=None)
        complete = frame.height == text.rstrip(b"\n").count(b"\n") + 1
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        complete = False
    if not complete:  # blank lines, lines that are no objects, or columns of mixed types
        rows, numbers, lost = _parse_lines(text, path)
        lines = np.array(numbers, np.int64)
        names = list(dict.fromkeys(name for row in rows for name in row))
        frame = pl.DataFrame({name: _unified([row.get(name) for row in rows]) for name in names}, strict=False)
    return Table(path, frame.select(select(frame.columns)), reading, lines=lines, lost=lost)


def _open_json(path: Path, reading: Reading, select: Selection) -> Table:
    import polars as pl

    content = read_json(path, reading.encoding)
    if isinstance(content, dict) and content and all(isinstance(column, list) for column in content.values()):
        lengths = {name: len(column) for name, column in content.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{path}: its columns have different lengths: {lengths}")
        columns = content
    elif isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        names = dict.fromkeys(name for row in content for name in row)
        columns = {name: [row.get(name) for row in content] for name in names}
    else:
        raise ValueError(
            f'{path} must hold a list of objects, as in [{{"price": 1, "day": "2024-05-31"}}], or an object of '
            'columns, as in {"price": [1, 2]}'
        )
    frame = pl.DataFrame({name: _unified(column) for name, column in columns.items()}, strict=False)
    return Table(path, frame.select(select(frame.columns)), reading)


def _open_excel(path: Path, reading: Reading, select: Selection) -> Table:
    import polars as pl

    if not path.stat().st_size:
        raise ValueError(f"{path} is empty")
    check_workbook(path)
    try:
        frame = pl.read_excel(path, sheet_id=1, infer_schema_length=None)
    except ModuleNotFoundError:
        raise ValueError(
            f"{path}: Excel files need the package fastexcel: pip install 'kshot[files]', or save the sheet as CSV"
        ) from None
    except (Exception, pl.exceptions.PanicException) as error:  # its reader raises errors of its own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read: {first}") from None
    frame = frame.select(select(_column_names(frame.columns, path, ",")))
    return Table(path, frame, reading, offset=2)


def _parse_lines(text: bytes, path: Path) -> tuple[list[dict[str, Any]], list[int], list[str]]:
    """The objects of a file that polars cannot parse, their lines, and the faults of other lines."""
    rows, numbers, lost = [], [], []
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, parse_constant=lambda word: None if word == "NaN" else float(word))
        except ValueError as error:
            lost.append(f"{path}, line {number}: not valid JSON: {error}")
            continue
        if not isinstance(row, dict):
            lost.append(f'{path}, line {number}: expected an object such as {{"name": 1}}, got {row!r:.40}')
            continue
        rows.append(row)
        numbers.append(number)
    return rows, numbers, lost


def _unified(values: list[Any]) -> list[Any]:
    """A column's values in one type: numbers or booleans if all of them are, else words."""
    types = {type(value) for value in values if value is not None}
    if types <= {int, float}:
        return [None if value is None else float(value) if abs(value) < 1e300 else float("inf") for value in values]
    if types == {bool}:
        return values
    return [None if value is None else value if isinstance(value, str) else json.dumps(value) for value in values]


def _open_parquet(path: Path, reading: Reading, select: Selection) -> Table:
    import polars as pl

    if not path.stat().st_size:
        raise ValueError(f"{path} is empty")
    lazy = pl.scan_parquet(path, glob=False)
    names = select(lazy.collect_schema().names())
    check_parquet(path, lazy.select(pl.len()).collect().item(), len(names))
    frame = lazy.select(names).collect()
    check_texts(path, frame)
    return Table(path, frame, reading)
