"""Texts in folders of files and in columns of tables."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from kshot.data.tables.table import Table

if TYPE_CHECKING:
    import polars


FILE_MANAGERS = ("thumbs.db", "desktop.ini", "__macosx")
"""Names of files and folders that file managers leave."""


def files_of(folder: Path, pattern: str, *, follow_links: bool = False) -> list[Path]:
    """The files at any depth of a folder whose names match a pattern such as `*.txt`, in any case, sorted.

    Hidden ones are ignored, such as the `._` files of macOS, and those of file managers. Links to folders are not
    followed.

    Args:
        folder, pattern: where to look, and for which names.
        follow_links: whether links to files may lead out of the folder.

    Raises:
        ValueError: no such folder, no such file in it, or a link that leads out.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    files = [path for path in _files(folder) if _matches(path, pattern)]
    root = os.path.realpath(folder)
    for path in files:
        target = os.path.realpath(path)
        if path.is_symlink() and not follow_links and os.path.commonpath([root, target]) != root:
            raise ValueError(
                f"the link {path} leads out of {folder}, to {target}; put the file itself there, or follow such links "
                "by follow_links: true"
            )
    if not files:
        raise ValueError(f"{folder} and its subfolders contain no file that matches {pattern!r}")
    return files


def notes_on(folder: Path, pattern: str) -> list[str]:
    """Sentences about what is in a folder and not among `files_of`: other files, and folders without any of them."""
    notes, files = [], _files(folder)
    others = Counter(path.suffix.lower() for path in files if not _matches(path, pattern))
    if others:
        kinds = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in others.most_common(5))
        notes.append(f"{folder} holds files that are not read as texts: {kinds}. Save those that are as {pattern}")
    full = {parent for path in files if _matches(path, pattern) for parent in path.parents}
    empty = [path for path in _visible(folder) if path.is_dir() and not path.is_symlink() and path not in full]
    if empty:
        named = ", ".join(str(path.relative_to(folder)) for path in empty[:5]) + (", …" if len(empty) > 5 else "")
        notes.append(f"{folder}: {len(empty):,} folders hold no texts, and are no classes: {named}")
    return notes + notes_on_links(folder)


def notes_on_links(folder: Path) -> list[str]:
    """A sentence about what is in a folder and is not read: links to folders or to nowhere, FIFOs, devices."""
    odd = [path for path in _visible(folder) if not path.is_file() and (path.is_symlink() or not path.is_dir())]
    if not odd:
        return []
    named = ", ".join(str(path.relative_to(folder)) for path in odd[:5]) + (", …" if len(odd) > 5 else "")
    return [
        f"{folder}: {len(odd):,} entries are links to folders or to nowhere, or no files, and are not read: {named}"
    ]


def _files(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_file()]


def _visible(folder: Path) -> list[Path]:
    """What is in a folder at any depth, sorted, without hidden files and those of file managers."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not any(part.startswith(".") or part.lower() in FILE_MANAGERS for part in parts):
            found.append(path)
    return found


def _matches(path: Path, pattern: str) -> bool:
    return fnmatch(path.name.lower(), pattern.lower())


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
