"""Running text: files of it, found in a folder and read as UTF-8 with the place of what is wrong, and columns of it."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from kshot.tasks.reading import Table

if TYPE_CHECKING:
    import polars

_MARK = b"\xef\xbb\xbf"
_WIDE = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path) -> str:
    r"""The text of a UTF-8 file: without a byte order mark, its line ends as `\n`.

    Raises:
        ValueError: it cannot be read, or is not UTF-8, naming the byte and the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + len(_MARK) * content.startswith(_MARK)  # it counts from behind the mark
        what = "UTF-16" if content.startswith(_WIDE) else "of another encoding, such as Latin-1 or Windows-1252"
        raise ValueError(
            f"{path}, line {content.count(10, 0, at) + 1}: byte {at} (0x{content[at]:02x}) is not UTF-8; the file may be "
            f"{what}: save it as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


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
