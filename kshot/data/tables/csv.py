"""The records of a CSV file: its delimiter, and where each record is, so that errors can name a line.

Everything is counted on whole arrays of bytes, chunk by chunk; nothing loops over rows.
"""

from __future__ import annotations

import csv
from itertools import islice
from typing import NamedTuple

import numpy as np

DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}

CHUNK = 1 << 24  # bytes scanned together
_QUOTE, _LF, _CR = 34, 10, 13
_UNBALANCED = 'unbalanced quotes: put a value that contains a quote in quotes, and double it: "5"" disk"'


class Records(NamedTuple):
    """The records of a text of delimited values.

    Attributes:
        header: column names of the first record, as written.
        text: UTF-8, the header and the valid records; blank lines and invalid records are removed.
        lines: int64 (num_rows,), the line, from 1, in which each record starts; None if row r starts in line r + 2.
        bad: line and description of each invalid record.
    """

    header: list[str]
    text: bytes
    lines: np.ndarray | None
    bad: list[tuple[int, str]]


def find_delimiter(text: bytes) -> str:
    """The delimiter that splits the first lines into the most columns, preferably into equally many."""
    head = text[: 1 << 16].decode(errors="ignore").splitlines()[:20]

    def score(delimiter: str) -> tuple[bool, int]:
        counts = [len(row) for row in islice(csv.reader(head, delimiter=delimiter), 20) if row]
        agree = sum(count == counts[0] for count in counts) > len(counts) / 2 if counts else False
        return (agree and counts[0] > 1, counts[0] if counts else 0)

    try:
        return max(DELIMITERS, key=score)
    except csv.Error:  # a field beyond the csv module's limit
        return ","


def records(text: bytes, delimiter: str, name: str) -> Records:
    r"""Find the records of a text and set aside the invalid ones.

    A quoted value may contain delimiters, line ends and doubled quotes (RFC 4180). If the quotes of a file are
    unbalanced, each line is examined separately: lines with unbalanced quotes are invalid, the others are kept.

    Args:
        text, delimiter: UTF-8, and one ASCII character.
        name: of the file, for errors.

    Raises:
        ValueError: an empty file, or an unreadable header.

    Example:
        >>> parsed = records(b'a,b\n1,2\n3\n"x, y",4\n', ",", "t.csv")
        >>> parsed.lines, parsed.bad
        (array([2, 4]), [(3, '1 value where the header names 2')])
    """
    if not text.strip():
        raise ValueError(f"{name} is empty; expected a header and rows")
    buffer = np.frombuffer(text if text.endswith(b"\n") else text + b"\n", np.uint8)
    scan = _scan(buffer, ord(delimiter), by_line=False) or _scan(buffer, ord(delimiter), by_line=True)
    assert scan is not None
    ends, fields, lines, balanced = scan
    starts = np.concatenate([[0], ends[:-1] + 1])
    length = ends - starts
    blank = (length == 0) | ((length == 1) & (buffer[starts] == _CR))
    first = int(np.argmin(blank))
    if fields[first] == 1:  # in one column an empty line is a missing value, except at the end
        last = len(blank) - int(np.argmin(blank[::-1]))
        blank[first:last] = False
    if not balanced[first]:
        raise ValueError(f"{name}, line {lines[first]}: unbalanced quotes in the header; close each opened quote")
    try:
        header_text = text[starts[first] : ends[first]].decode().rstrip("\r")
        header = next(csv.reader([header_text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(f"{name}, line {lines[first]}: the header cannot be read: {error}") from None
    width = int(fields[first])
    valid = ~blank & balanced & (fields == width)
    bad = []
    for row in np.flatnonzero(~blank & ~valid):
        fault = f"{fields[row]} value{'s' * bool(fields[row] != 1)} where the header names {width}"
        bad.append((int(lines[row]), fault if balanced[row] else _UNBALANCED))
    if not valid.all():
        edges = np.zeros(len(buffer) + 1, np.int8)
        edges[starts[valid]] += 1
        edges[ends[valid] + 1] -= 1
        text = buffer[edges[:-1].cumsum(dtype=np.int8).astype(bool)].tobytes()
    row_lines = lines[valid][1:]
    consecutive = len(row_lines) == 0 or (row_lines[0] == 2 and row_lines[-1] == len(row_lines) + 1)
    return Records(header, text, None if consecutive else row_lines, bad)


def _scan(buffer: np.ndarray, delimiter: int, *, by_line: bool) -> tuple[np.ndarray, ...] | None:
    """For each record the offset of its line feed, its number of fields, its line, and whether its quotes balance.

    `by_line` ends a record at every line feed, quoted or not. Otherwise unbalanced quotes give None.
    """
    chunks: list[tuple[np.ndarray, ...]] = []
    start, line, inside = 0, 1, 0  # of the chunk: first byte, first line, whether it starts within quotes
    record_line, carried = 1, 0  # of the record that the last chunk left open: its line, its delimiters so far
    while start < len(buffer):
        stop = _line_end(buffer, min(start + CHUNK, len(buffer)))
        chunk = buffer[start:stop]
        feeds, delimiters, quotes = (np.flatnonzero(chunk == byte) for byte in (_LF, delimiter, _QUOTE))
        ends, misplaced = feeds, np.empty(0, np.int64)
        if len(quotes) or inside:
            before = quotes.searchsorted(np.concatenate([[0], feeds[:-1]])) * by_line  # quotes in earlier lines

            def quoted(offsets: np.ndarray) -> np.ndarray:
                """Whether each offset is within quotes; a closing quote is, an opening one is not."""
                count = quotes.searchsorted(offsets) - before[feeds.searchsorted(offsets)] + inside  # noqa: B023
                return count % 2 == 1

            misplaced = quotes[~_well_placed(chunk, quotes, ~quoted(quotes), delimiter)]
            delimiters = delimiters[~quoted(delimiters)]
            if by_line:
                misplaced = np.concatenate([misplaced, feeds[quoted(feeds)]])
            else:
                ends = feeds[~quoted(feeds)]
                inside = (inside + len(quotes)) % 2
        if not by_line and (len(misplaced) or (inside and stop == len(buffer))):
            return None
        balanced = np.ones(len(ends), bool)
        balanced[ends.searchsorted(misplaced)] = False
        seen = delimiters.searchsorted(ends)
        fields = np.diff(seen, prepend=-carried) + 1
        carried = len(delimiters) - int(seen[-1]) if len(ends) else carried + len(delimiters)
        lines = np.concatenate([[record_line], line + 1 + feeds.searchsorted(ends)])
        chunks.append((start + ends, fields, lines[:-1], balanced))
        start, line, record_line = stop, line + len(feeds), int(lines[-1])
    return tuple(map(np.concatenate, zip(*chunks)))


def _line_end(buffer: np.ndarray, stop: int) -> int:
    """The first offset at or after `stop` at which a line begins, or the end."""
    while stop < len(buffer) and buffer[stop - 1] != _LF:
        feeds = np.flatnonzero(buffer[stop : stop + CHUNK] == _LF)
        stop = min(stop + (int(feeds[0]) + 1 if len(feeds) else CHUNK), len(buffer))
    return stop


def _well_placed(chunk: np.ndarray, quotes: np.ndarray, opens: np.ndarray, delimiter: int) -> np.ndarray:
    """Whether each quote is at a valid offset: an opening one at the start of a value, a closing one at its end."""
    padded = np.concatenate([[_LF], chunk, [_LF]]).astype(np.uint8)
    before, after = padded[quotes], padded[quotes + 2]
    starts = (before == delimiter) | (before == _LF) | (before == _QUOTE)
    stops = (after == delimiter) | (after == _LF) | (after == _CR) | (after == _QUOTE)
    return np.where(opens, starts, stops)
