"""Texts with labels as one `Table`, whether they stand in a table, in folders of files or in a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kshot.data.images.index import SPLIT_FOLDERS
from kshot.data.tables.table import Reading, Table, open_table
from kshot.data.text.files import files_of, read_text


class PlacedTable(Table):
    """A table whose rows stand in places of their own, such as one file each."""

    def __init__(self, path: Path, columns: dict[str, list[str | None]], places: list[str], lost: list[str]) -> None:
        import polars as pl

        super().__init__(path, pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)), lost=lost)
        self._places = places

    def place(self, row: int, column: str | None = None) -> str:
        return self._places[row] + (f", {column}" if column else "")


def open_labelled(path: Path | str, reading: Reading, text: str, label: str) -> Table:
    """Open a table, a folder with one folder of text files a class, or a JSON file.

    A folder gives the columns text and label, and domain and split where there are folders for them; JSON pairs give
    `text` and `label`, and part where the file has parts; JSON objects give their keys.

    Raises:
        ValueError: what `open_table` says, text files that lie in no folder of a class, or JSON of another form.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _folder(path, reading)
    if path.is_file() and path.suffix.lower() == ".json":
        return _json(path, reading, text, label)
    return open_table(path, reading)


def _folder(root: Path, reading: Reading) -> Table:
    files = files_of(root, "*.txt")
    ways = [path.relative_to(root).parts[:-1] for path in files]
    uppermost = {way[0] for way in ways if way}
    parted = "train" in uppermost and uppermost <= set(SPLIT_FOLDERS)
    columns: dict[str, list[str | None]] = {name: [] for name in ("text", "label", "domain", "split")}
    places: list[str] = []
    lost: list[str] = []
    for path, way in zip(files, ways):
        below = way[1:] if parted else way
        if not below:
            raise ValueError(
                f"{path} lies in no folder of a class; {root} needs one folder a class, as in {root}/CLASS/1.txt, and "
                f"may have folders above: {root}/DOMAIN/CLASS/1.txt or {root}/train/CLASS/1.txt"
            )
        try:
            text = read_text(path, reading.encoding)
        except ValueError as error:
            lost.append(str(error))
            continue
        row = text, "/".join(below), "/".join(below[:-1]) or None, SPLIT_FOLDERS[way[0]] if parted else None
        for column, value in zip(columns.values(), row):
            column.append(value)
        places.append(str(path))
    whole = {name: column for name, column in columns.items() if any(value is not None for value in column)}
    return PlacedTable(root, {"text": [], "label": []} | whole, places, lost)


def _json(path: Path, reading: Reading, text: str, label: str) -> Table:
    try:
        content = json.loads(read_text(path, reading.encoding))
    except (ValueError, RecursionError) as error:
        raise error if str(path) in str(error) else ValueError(f"{path} is no JSON: {error}") from None
    parts = content if isinstance(content, dict) else {"": content}
    rows: list[dict[str, str | None]] = []
    places: list[str] = []
    lost: list[str] = []
    for part, entries in parts.items():
        if not isinstance(entries, list):
            where = f"under {part!r} " if part else ""
            raise ValueError(
                f'{path} must hold lists of [text, label] or of objects, as in {{"train": [["hello", "greet"]]}}; '
                f"it holds {str(entries)[:40]!r} {where}".rstrip()
            )
        for number, entry in enumerate(entries):
            place = f"{path}, {part}[{number}]"
            try:
                rows.append(dict(_entry(entry, text, label)) | ({"part": part} if part else {}))
                places.append(place)
            except ValueError as error:
                lost.append(f"{place}: {error}")
    names = dict.fromkeys(name for row in rows for name in row) or dict.fromkeys([text, label])
    return PlacedTable(path, {name: [row.get(name) for row in rows] for name in names}, places, lost)


def _entry(entry: Any, text: str, label: str) -> Iterator[tuple[str, str | None]]:
    """The columns and values of an entry."""
    if isinstance(entry, list) and len(entry) == 2:
        entry = {text: entry[0], label: entry[1]}
    if not isinstance(entry, dict):
        raise ValueError(f"expected [text, label] or an object, got {str(entry)[:40]!r}")
    for name, value in entry.items():
        word = value if value is None or isinstance(value, str) else json.dumps(value)
        if not (name + (word or "")).isascii():
            try:
                (name + (word or "")).encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{error.object[error.start]!r} is half of a character; mend the \\u escapes"
                ) from None
        yield name, word
