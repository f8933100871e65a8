"""The anatomy of a CSV file: its encoding, its delimiter, and where its records lie, so that errors can name a line.

Everything is counted in whole arrays of bytes, chunk by chunk; nothing loops over rows.
"""

from __future__ import annotations

import csv
from itertools import islice
from typing import NamedTuple

import numpy as np

DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
BOMS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32",
        b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # fmt: skip
NOT_TEXT = {b"PK\x03\x04": "a zip or an Excel workbook: save the sheet as CSV",
            b"\x1f\x8b": "compressed by gzip: unpack it", b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
            b"PAR1": "a Parquet file: name it .parquet",
            b"SQLite format 3": "an SQLite database: export the table as CSV", b"%PDF": "a PDF"}  # fmt: skip

CHUNK = 1 << 24  # bytes looked at together
_QUOTE, _LF, _CR = 34, 10, 13


class Records(NamedTuple):
    """What lies where in a text of delimited values.

    Attributes:
        header: the names in its first record, as written.
        text: UTF-8, the header and its good records; blank and bad ones are left out.
        lines: int64 (rows,), the line that each good record starts in, counted from 1; None where row r stands in line
            r + 2.
        bad: (line, what is wrong) of each record left out.
    """

    header: list[str]
    text: bytes
    lines: np.ndarray | None
    bad: list[tuple[int, str]]


def decode(data: bytes, encoding: str | None, place: str) -> bytes:
    """A file's bytes as UTF-8 without a byte order mark, lines ended by a line feed.

    A byte order mark, or the zeros of UTF-16, tell the encoding; what is left must be UTF-8 unless `encoding` is given.
    A wrong guess would spoil words in silence, so none is made.

    Raises:
        ValueError: no text, or text in another encoding.
    """
    for start, what in NOT_TEXT.items():
        if data.startswith(start):
            raise ValueError(f"{place} is {what}")
    mark = next((mark for mark in BOMS if data.startswith(mark)), b"")
    known = encoding or BOMS.get(mark) or _wide(data)
    if known and known.lower().replace("_", "-") not in ("utf-8", "utf8"):
        try:
            data = data.decode(known).removeprefix("\ufeff").encode()
        except LookupError:
            raise ValueError(
                f"{place}: there is no encoding {known!r}; common ones are utf-8, latin-1, cp1252 and utf-16"
            ) from None
        except (UnicodeError, ValueError) as error:
            raise ValueError(f"{place} is not {known}: {error}; give its encoding") from None
    else:
        data = data[len(mark) :]
        try:
            data.decode()
        except UnicodeDecodeError as error:
            line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
            raise ValueError(
                f"{place}, line {line}: byte {byte:#04x} is not UTF-8 (in latin-1 it is {chr(byte)!r}); give the "
                "file's encoding, such as latin-1, or save it as UTF-8"
            ) from None
    if b"\0" in data:
        raise ValueError(
            f"{place}, line {data.count(chr(10).encode(), 0, data.index(0)) + 1}: holds a zero byte, so it is no text"
        )
    return data.replace(b"\r", b"\n") if b"\r" in data and b"\n" not in data else data


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark: Latin text in it has a zero in every second byte."""
    head = np.frombuffer(data[: 1 << 12], np.uint8)
    head = head[: len(head) // 2 * 2].reshape(-1, 2)
    if not len(head):
        return None
    big, little = (head == 0).mean(0)
    if max(big, little) < 0.8 or min(big, little) > 0.1:
        return None
    return "utf-16-le" if little > big else "utf-16-be"


def find_delimiter(text: bytes) -> str:
    """The delimiter that cuts the first lines into the most columns, and into equally many where that can be had."""
    head = text[: 1 << 16].decode(errors="ignore").splitlines()[:20]

    def merit(delimiter: str) -> tuple[bool, int]:
        counts = [len(row) for row in islice(csv.reader(head, delimiter=delimiter), 20) if row]
        agree = sum(count == counts[0] for count in counts) > len(counts) / 2 if counts else False
        return (agree and counts[0] > 1, counts[0] if counts else 0)

    try:
        return max(DELIMITERS, key=merit)
    except csv.Error:  # a field beyond the csv module's limit
        return ","


def records(text: bytes, delimiter: str, place: str) -> Records:
    r"""Find the records of a text, and set aside those that are not whole.

    A value in quotes may hold delimiters, line ends and doubled quotes, as RFC 4180 says. Where the quotes of a file do
    not add up, each line is looked at on its own: a line whose quotes don't is bad, and the others are kept.

    Args:
        text: UTF-8, as `decode` gives it.
        delimiter: one character of ASCII.
        place: names the file in errors.

    Raises:
        ValueError: an empty file, or a header that can't be read.

    Example:
        >>> found = records(b'a,b\n1,2\n3\n"x, y",4\n', ",", "t.csv")
        >>> found.lines, found.bad
        (array([2, 4]), [(3, '1 value where the header names 2')])
    """
    if not text.strip():
        raise ValueError(f"{place} is empty; it needs a header and rows")
    buffer = np.frombuffer(text if text.endswith(b"\n") else text + b"\n", np.uint8)
    found = _scan(buffer, ord(delimiter), by_line=False) or _scan(buffer, ord(delimiter), by_line=True)
    assert found is not None
    ends, fields, lines, sound = found
    starts = np.concatenate([[0], ends[:-1] + 1])
    length = ends - starts
    blank = (length == 0) | ((length == 1) & (buffer[starts] == _CR))
    first = int(np.argmin(blank))
    if fields[first] == 1:  # an empty line is a missing value, but for those at the end
        last = len(blank) - int(np.argmin(blank[::-1]))
        blank[first:last] = False
    if not sound[first]:
        raise ValueError(f"{place}, line {lines[first]}: the header's quotes do not add up; each opened must be closed")
    header_text = text[starts[first] : ends[first]].decode().rstrip("\r")
    try:
        header = next(csv.reader([header_text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(f"{place}, line {lines[first]}: the header cannot be read: {error}") from None
    width = int(fields[first])
    whole = ~blank & sound & (fields == width)
    bad = [
        (int(lines[row]), _what(int(fields[row]), width, bool(sound[row]))) for row in np.flatnonzero(~blank & ~whole)
    ]
    if whole.all():
        clean = text
    else:
        cuts = np.zeros(len(buffer) + 1, np.int8)
        cuts[starts[whole]] += 1
        cuts[ends[whole] + 1] -= 1
        clean = buffer[cuts[:-1].cumsum(dtype=np.int8).astype(bool)].tobytes()
    own = lines[whole][1:]
    plain = len(own) == 0 or (own[0] == 2 and own[-1] == len(own) + 1)
    return Records(header, clean, None if plain else own, bad)


def _what(fields: int, width: int, sound: bool) -> str:
    if not sound:
        return 'quotes that do not add up: put a value that holds a quote in quotes, and double its own: "5"" disk"'
    return f"{fields} value{'s' * (fields != 1)} where the header names {width}"


def _scan(buffer: np.ndarray, delimiter: int, *, by_line: bool) -> tuple[np.ndarray, ...] | None:
    """Each record's end (the place of its line feed), its number of fields, its line, and whether its quotes add up.

    `by_line` ends a record at every line feed, quoted or not. Otherwise quotes that do not add up give None.
    """
    found: list[tuple[np.ndarray, ...]] = []
    start, line, inside = 0, 1, 0  # of the chunk: its first byte, its first line, whether it starts within quotes
    record_line, held = 1, 0  # of the record that the chunk before left open: its line, its delimiters so far
    while start < len(buffer):
        stop = _line_end(buffer, min(start + CHUNK, len(buffer)))
        part = buffer[start:stop]
        feeds, commas, quotes = (np.flatnonzero(part == byte) for byte in (_LF, delimiter, _QUOTE))
        ends, wrong = feeds, np.empty(0, np.int64)
        if len(quotes) or inside:
            before = quotes.searchsorted(np.concatenate([[0], feeds[:-1]])) * by_line  # quotes before a line's own

            def quoted(places: np.ndarray) -> np.ndarray:
                """Whether each place stands within quotes; a closing quote does, an opening one does not."""
                count = quotes.searchsorted(places) - before[feeds.searchsorted(places)] + inside  # noqa: B023
                return count % 2 == 1

            wrong = quotes[~_fits(part, quotes, ~quoted(quotes), delimiter)]
            commas = commas[~quoted(commas)]
            if by_line:
                wrong = np.concatenate([wrong, feeds[quoted(feeds)]])
            else:
                ends = feeds[~quoted(feeds)]
                inside = (inside + len(quotes)) % 2
        if not by_line and (len(wrong) or (inside and stop == len(buffer))):
            return None
        sound = np.ones(len(ends), bool)
        sound[ends.searchsorted(wrong)] = False
        seen = commas.searchsorted(ends)
        fields = np.diff(seen, prepend=-held) + 1
        held = len(commas) - int(seen[-1]) if len(ends) else held + len(commas)
        lines = np.concatenate([[record_line], line + 1 + feeds.searchsorted(ends)])
        found.append((start + ends, fields, lines[:-1], sound))
        start, line, record_line = stop, line + len(feeds), int(lines[-1])
    return tuple(map(np.concatenate, zip(*found)))


def _line_end(buffer: np.ndarray, stop: int) -> int:
    """The first place at or after `stop` where a line begins, or the end."""
    while stop < len(buffer) and buffer[stop - 1] != _LF:
        feeds = np.flatnonzero(buffer[stop : stop + CHUNK] == _LF)
        stop = min(stop + (int(feeds[0]) + 1 if len(feeds) else CHUNK), len(buffer))
    return stop


def _fits(part: np.ndarray, quotes: np.ndarray, opens: np.ndarray, delimiter: int) -> np.ndarray:
    """Whether each quote stands where one may: an opening one at a value's start, a closing one at its end."""
    padded = np.concatenate([[_LF], part, [_LF]]).astype(np.uint8)
    before, after = padded[quotes], padded[quotes + 2]
    starts = (before == delimiter) | (before == _LF) | (before == _QUOTE)
    stops = (after == delimiter) | (after == _LF) | (after == _CR) | (after == _QUOTE)
    return np.where(opens, starts, stops)
