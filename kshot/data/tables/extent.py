"""How much a Parquet or Excel file holds, found out before it is read.

A few kilobytes can name a billion rows. The readers of Excel files allocate all cells up to the last row and column
that has a value, so that one cell far away costs as much as a full sheet.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from kshot.bounded import check_unpacked, open_file
from kshot.limits import limits, over

if TYPE_CHECKING:
    import polars

CELL_BYTES = 8
"""Memory of a cell of a Parquet file."""
EXCEL_CELLS = 24
"""A cell of an Excel file counts as so many of a Parquet file: it takes 50 bytes while it is read, and then a row."""
_XLSX_CELL = re.compile(rb'<(?:\w+:)?c\s[^>]*?r="([A-Z]{1,3})(\d{1,7})"')
_ODS_TAG = re.compile(rb"<table:(table-row|table-cell|covered-table-cell|table)\b([^>]*)>")
_REPEATED = re.compile(rb'number-(?:rows|columns)-repeated="(\d{1,9})"')


def check_parquet(path: Path, num_rows: int, num_columns: int) -> None:
    """Raise `OverLimit` if a file names more cells than the limits allow for its size."""
    most = min(limits().cells, limits().unpacked(path.stat().st_size) // CELL_BYTES)
    if num_rows * num_columns > most:
        raise over(
            f"{path} unpacks to {num_rows:,} rows of {num_columns} columns, and for a file of its size at most "
            f"{most:,} cells are read"
        )


def check_texts(path: Path, frame: polars.DataFrame) -> None:
    """Raise `OverLimit` if the texts of a frame have more bytes than the limits allow for the size of its file."""
    import polars as pl

    texts = frame.select(pl.col(pl.String).str.len_bytes().cast(pl.Int64).sum())
    check_unpacked(sum(texts.row(0)) if texts.width else 0, limits().unpacked(path.stat().st_size), path)


def check_workbook(path: Path) -> None:
    """Raise `OverLimit` if an .xlsx, .xlsb or .ods file has more bytes or cells than the limits allow.

    Raises:
        ValueError: it is damaged, or compressed by another method than deflate.
    """
    most = limits().unpacked(path.stat().st_size)
    total = 0
    try:
        with open_file(path) as file:
            if not zipfile.is_zipfile(file):  # .xls, which has at most 65,536 rows of 256 columns
                return
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                        raise ValueError(f"{path} is compressed by another method than deflate; save it again")
                    content = _content(archive, member, most - total)
                    total += len(content)
                    check_unpacked(total, most, path)
                    _check_sheet(path, member.filename, content)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> bytes:
    """The content of a member, up to one byte more than `most`, whatever size the archive says that it has."""
    member.file_size = max(member.file_size, most + 2)
    with archive.open(member) as stream:
        return stream.read(most + 1)


def _check_sheet(path: Path, name: str, content: bytes) -> None:
    if name.startswith("xl/worksheets/") and name.endswith(".xml"):
        rows, columns = _extent_xlsx(content)
    elif name.startswith("xl/worksheets/") and name.endswith(".bin"):
        rows, columns = _extent_xlsb(content)
    elif name == "content.xml":
        rows, columns = _extent_ods(content)
    else:
        return
    most = limits().cells // EXCEL_CELLS
    if rows * columns > most:
        raise over(
            f"{path}: its cells reach to row {rows:,} and column {columns:,}, and at most {most:,} cells are read; "
            "delete what is far from the table, or save the sheet as CSV"
        )


def _extent_xlsx(content: bytes) -> tuple[int, int]:
    """The last row and column, from 1, of a sheet of an .xlsx."""
    rows = columns = 0
    for letters, digits in _XLSX_CELL.findall(content):
        column = 0
        for letter in letters:
            column = 26 * column + letter - 64
        rows, columns = max(rows, int(digits)), max(columns, column)
    return rows, columns


def _extent_xlsb(content: bytes) -> tuple[int, int]:
    """The last row and column, from 1, of a sheet of an .xlsb: of the records of rows (0) and of cells (1 … 11)."""
    rows = columns = at = 0
    while at + 2 < len(content):
        kind, at = content[at], at + 1
        if kind & 0x80:
            kind, at = kind & 0x7F | (content[at] & 0x7F) << 7, at + 1
        size = shift = 0
        while at < len(content) and shift < 28:
            byte, at = content[at], at + 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        if kind <= 11 and at + 4 <= len(content):
            number = int.from_bytes(content[at : at + 4], "little") + 1
            rows, columns = (max(rows, number), columns) if kind == 0 else (rows, max(columns, number))
        at += size
    return rows, columns


def _extent_ods(content: bytes) -> tuple[int, int]:
    """The last row and column, from 1, that have a value in any sheet of an .ods."""
    rows = columns = row = column = 0
    for tag, attributes in _ODS_TAG.findall(content):
        repeated = _REPEATED.search(attributes)
        count = int(repeated[1]) if repeated else 1
        if tag == b"table":
            row = 0
        elif tag == b"table-row":
            row, column = row + count, 0
        else:
            column += count
            if b"value-type=" in attributes:
                rows, columns = max(rows, row), max(columns, column)
    return rows, columns
