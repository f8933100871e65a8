"""Texts in folders of files and in columns of tables."""

from __future__ import annotations

from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from kshot.data.tables.table import Table

if TYPE_CHECKING:
    import polars


def files_of(folder: Path, pattern: str) -> list[Path]:
    """The files at any depth of a folder whose names match a pattern such as `*.txt`, sorted, without hidden ones."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    files = sorted(
        path
        for path in folder.rglob("*")
        if fnmatch(path.name, pattern)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise ValueError(f"{folder} and its subfolders contain no file that matches {pattern!r}")
    return files


def texts_of(table: Table, column: str) -> polars.Series:
    """A column as texts, exactly as written; an empty or blank one is a fault of its row."""
    import polars as pl

    table.need(column)
    series = table.frame[column]
    texts = series.cast(pl.String) if series.dtype in (pl.String, pl.Categorical, pl.Enum) else table.labels(column)
    blank = (texts.is_null() | (texts.str.strip_chars() == "")).fill_null(True)
    table.missing(column, blank.to_numpy(), "a text needs at least one character other than white space")
    return texts


def column_of(table: Table, column: str) -> polars.Series:
    """A column as words, null for missing values."""
    table.need(column)
    return table.labels(column)


def words_of(table: Table, column: str, why: str) -> polars.Series:
    """A column of names; a missing one is a fault of its row."""
    words = column_of(table, column)
    table.missing(column, words.is_null().to_numpy(), why)
    return words


def values_of(names: polars.Series, column: polars.Series) -> dict[str, set[str]]:
    """The distinct values of a column for each name."""
    import polars as pl

    values: dict[str, set[str]] = defaultdict(set)
    for name, value in pl.DataFrame({"name": names, "value": column}).unique().iter_rows():
        values[name].add(value)
    return values
