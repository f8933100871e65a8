"""Labelled texts as one `Table`, from a table, folders of text files or a JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from kshot.bounded import home_expanded
from kshot.data.images.index import SPLIT_FOLDERS
from kshot.data.tables.frames import TableLike, is_path
from kshot.data.tables.open import open_table
from kshot.data.tables.table import Reading, Table
from kshot.data.text.files import files_of, notes_on
from kshot.data.text_files import read_json, read_text


class LocatedTable(Table):
    """A table whose rows come from several files or entries, each with its location for messages.

    Attributes:
        notes: sentences about what is beside the texts and not read.
    """

    def __init__(
        self,
        path: Path,
        columns: dict[str, list[str | None]],
        locations: list[str],
        lost: list[str],
        notes: Sequence[str] = (),
    ) -> None:
        import polars as pl

        super().__init__(path, pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)), lost=lost)
        self._locations, self.notes = locations, notes

    def place(self, row: int, column: str | None = None) -> str:
        return self._locations[row] + (f", {column}" if column else "")


def open_labelled(
    path: Path | str | TableLike, reading: Reading, text: str, label: str, *, follow_links: bool = False
) -> Table:
    """Open a table, a folder with a folder of text files for each class, or a JSON file.

    A folder gives the columns text and label, and domain and split if there are folders for them. A JSON file holds a
    list of pairs [text, label] or of objects, or an object of such lists, whose keys become the column part.

    Args:
        path, reading: the table, folder or JSON file, and the format of the files.
        text, label: names of the columns that pairs become.
        follow_links: whether links in a folder may lead out of it.

    Raises:
        ValueError: as `open_table`, text files outside of class folders, or JSON of another structure.
    """
    if not is_path(path):
        return open_table(path, reading)
    path = home_expanded(cast("str", path))
    if path.is_dir():
        return _open_folder(path, reading, follow_links)
    if path.is_file() and path.suffix.lower() == ".json":
        return _open_json(path, reading, text, label)
    return open_table(path, reading)


def _open_folder(root: Path, reading: Reading, follow_links: bool) -> Table:
    files = files_of(root, "*.txt", follow_links=follow_links)
    parents = [path.relative_to(root).parts[:-1] for path in files]
    top_folders = {folders[0] for folders in parents if folders}
    has_splits = "train" in top_folders and top_folders <= set(SPLIT_FOLDERS)
    rows: list[tuple[str | None, ...]] = []
    locations: list[str] = []
    lost: list[str] = []
    for path, folders in zip(files, parents):
        split = SPLIT_FOLDERS[folders[0]] if has_splits and folders else None
        folders = folders[1:] if has_splits else folders
        if not folders:
            raise ValueError(
                f"{path} is in no class folder; {root} needs one folder for each class, as in {root}/CLASS/1.txt, and "
                f"may have folders above: {root}/DOMAIN/CLASS/1.txt or {root}/train/CLASS/1.txt"
            )
        try:
            text = read_text(path, reading.encoding)
        except ValueError as error:
            lost.append(str(error))
            continue
        rows.append((text, "/".join(folders), "/".join(folders[:-1]) or None, split))
        locations.append(str(path))
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("text", "label", "domain", "split"))}
    present = {name: column for name, column in columns.items() if name in ("text", "label") or any(column)}
    return LocatedTable(root, present, locations, lost, notes_on(root, "*.txt"))


def _open_json(path: Path, reading: Reading, text: str, label: str) -> Table:
    content = read_json(path, reading.encoding)
    rows: list[dict[str, str | None]] = []
    locations: list[str] = []
    lost: list[str] = []
    for part, entries in (content if isinstance(content, dict) else {"": content}).items():
        if not isinstance(entries, list):
            where = f"under {part!r} " if part else ""
            raise ValueError(
                f'{path} must hold lists of [text, label] or of objects, as in {{"train": [["hello", "greet"]]}}; '
                f"got {str(entries)[:40]!r} {where}".rstrip()
            )
        for number, entry in enumerate(entries):
            location = f"{path}, {part}[{number}]"
            try:
                rows.append(dict(_cells(entry, text, label)) | ({"part": part} if part else {}))
                locations.append(location)
            except ValueError as error:
                lost.append(f"{location}: {error}")
    names = dict.fromkeys(name for row in rows for name in row) or dict.fromkeys([text, label])
    return LocatedTable(path, {name: [row.get(name) for row in rows] for name in names}, locations, lost)


def _cells(entry: Any, text: str, label: str) -> Iterator[tuple[str, str | None]]:
    """The columns and values of an entry."""
    if isinstance(entry, list) and len(entry) == 2:
        entry = {text: entry[0], label: entry[1]}
    if not isinstance(entry, dict):
        raise ValueError(f"expected [text, label] or an object, got {str(entry)[:40]!r}")
    for name, value in entry.items():
        word = value if value is None or isinstance(value, str) else json.dumps(value)
        try:
            (name + (word or "")).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{error.object[error.start]!r} is half of a character; correct the \\u escapes") from None
        yield name, word


def phrase(name: str) -> str:
    """The name of a class as words.

    Example:
        >>> phrase("freeze_account"), phrase("greatWhiteShark"), phrase("comp.sys.mac"), phrase("PDFFile")
        ('freeze account', 'great White Shark', 'comp sys mac', 'PDF File')
    """
    parted = re.sub(r"(?<=[^\W\d_])(?<![A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return " ".join(re.sub(r"[_\-./]+", " ", parted).split()) or name
