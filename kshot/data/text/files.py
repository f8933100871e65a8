"""Running text: files of it, found in a folder and read as UTF-8 with the place of what is wrong, and columns of it."""

from __future__ import annotations

from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from kshot.data.tables.table import Table

if TYPE_CHECKING:
    import polars

_MARK = b"\xef\xbb\xbf"
_WIDE = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path, encoding: str | None = None) -> str:
    r"""The text of a file: without a byte order mark, its line ends as `\n`.

    Args:
        path: the file.
        encoding: UTF-8 by default. A wrong guess would spoil words in silence, so none is made.

    Raises:
        ValueError: it cannot be read, or is in another encoding, naming the byte and the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    content = content.removeprefix(_MARK)
    known = encoding or "UTF-8"
    try:
        text = content.decode(known)
    except LookupError:
        raise ValueError(
            f"reading.encoding: there is no encoding {known!r}; common ones are utf-8, latin-1 and cp1252"
        ) from None
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        likely = "utf-16" if content.startswith(_WIDE) else "latin-1 or cp1252"
        raise ValueError(
            f"{path}, line {content.count(10, 0, at) + 1}: byte {at} (0x{content[at]:02x}) is not {known}; save the "
            f"file as UTF-8, or name its encoding by reading.encoding, such as {likely}"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def files_of(folder: Path, pattern: str) -> list[Path]:
    """The files anywhere below a folder whose names match a pattern such as `*.txt`, sorted; hidden ones are left out.

    Raises:
        ValueError: no folder, or no such file in it.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found = sorted(
        path
        for path in folder.rglob("*")
        if fnmatch(path.name, pattern)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise ValueError(f"{folder} and the folders in it hold no file that matches {pattern!r}")
    return found


def texts_of(table: Table, column: str) -> polars.Series:
    """A column as texts, each as it is written; one that is empty or blank is a fault of its row."""
    import polars as pl

    table.need(column)
    series = table.frame[column]
    texts = series.cast(pl.String) if series.dtype in (pl.String, pl.Categorical, pl.Enum) else table.labels(column)
    blank = (texts.is_null() | (texts.str.strip_chars() == "")).fill_null(True)
    table.missing(column, blank.to_numpy(), "a text needs at least one character that is no space")
    return texts


def column_of(table: Table, column: str) -> polars.Series:
    """A column as words, null where a value is missing."""
    table.need(column)
    return table.labels(column)


def words_of(table: Table, column: str, why: str) -> polars.Series:
    """A column of names; a missing one is a fault of its row."""
    words = column_of(table, column)
    table.missing(column, words.is_null().to_numpy(), why)
    return words


def values_of(names: polars.Series, column: polars.Series) -> dict[str, set[str]]:
    """The values of a column in the rows of each name."""
    import polars as pl

    found: dict[str, set[str]] = defaultdict(set)
    for name, value in pl.DataFrame({"name": names, "value": column}).unique().iter_rows():
        found[name].add(value)
    return found
