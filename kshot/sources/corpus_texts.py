"""The texts of each task of a corpus: files, folders of files, the passages of speakers, or rows of a table."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from kshot.data.library.archives import SUFFIXES as ARCHIVES
from kshot.data.library.archives import unpack
from kshot.data.tables.open import SUFFIXES, open_table
from kshot.data.tables.table import Reading
from kshot.data.text.files import column_of, texts_of, values_of, words_of
from kshot.data.text.markup import Markup, tidy
from kshot.data.text_files import read_text
from kshot.sources.rows import BadRows

log = logging.getLogger(__name__)

NAMED_WITHIN = ("passage", "voice")
"""Tasks that a pattern names within the files: the speakers of each file, or of all files."""
OF_FILES = ("file", "folder", *NAMED_WITHIN)
"""Tasks of text files; anything else is a column of a table."""
UNREADABLE, UNNAMED = "files in another encoding", "characters before the first that the pattern names"


class TextsOfTasks(NamedTuple):
    """The texts of each task in order, the values of its split column, and what was left out: reason to count."""

    texts: dict[str, list[str]]
    splits: dict[str, set[str]] | None
    left_out: dict[str, int]


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The temporary folder of an archive; other paths unchanged."""
    if not (path.is_file() and path.name.endswith(ARCHIVES)):
        yield path
        return
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "unpacked"
        unpack(path, folder)
        entries = list(folder.iterdir())
        yield entries[0] if len(entries) == 1 and entries[0].is_dir() else folder


class MarkupReader:
    """Parses marked-up texts without the text of some elements, and records all elements."""

    def __init__(self, without: Collection[str]) -> None:
        self.without, self.elements = without, set[str]()

    def __call__(self, content: str, where: object) -> Markup:
        try:
            markup = Markup(content, self.without)
        except ValueError as error:
            raise ValueError(f"{where}, {error}") from None
        self.elements |= markup.elements
        return markup

    def check(self, path: Path) -> None:
        """Raise ValueError if an element to be left out never occurred."""
        missing = [name for name in self.without if name.lower() not in self.elements]
        if missing:
            known = ", ".join(sorted(self.elements)[:30]) or "none"
            raise ValueError(f"without: {path} has no element {', '.join(missing)}; it has {known}")


Parser = MarkupReader | None


def texts_from_table(
    path: Path, task: str, text: str, column: str | None, markup: Parser, bad_rows: BadRows, format: Reading
) -> TextsOfTasks:
    """The texts of a table; `column` is that of train, val and test, by default "split" if the table has it."""
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; its tasks are a file, folder, passage or voice each, and {task!r} is none of these"
        )
    import polars as pl

    table = open_table(path, format)
    texts, names = texts_of(table, text), words_of(table, task, "a text needs the name of its task")
    rows = np.flatnonzero(table.settle(bad_rows))
    groups = pl.DataFrame({"name": names[rows], "text": texts[rows]}).group_by("name", maintain_order=True).agg("text")
    if column is None and "split" in table.frame.columns:
        column = "split"
    splits = None if column is None else values_of(names[rows], column_of(table, column)[rows])
    by_task: dict[str, list[str]] = dict(groups.iter_rows())
    if markup is not None:
        for name, contents in by_task.items():
            by_task[name] = [markup(content, f"{path}, a text of {name}").all() for content in contents]
    return TextsOfTasks(by_task, splits, {"bad rows": table.dropped["rows"]})


def texts_from_files(
    path: Path, task: str, pattern: str | None, files: list[Path], markup: Parser, *, drop: bool, encoding: str | None
) -> TextsOfTasks:
    """The texts of the files of a folder, or of one file; `drop` leaves out files in another encoding."""
    try:
        expression = re.compile(pattern, re.MULTILINE) if pattern is not None else None
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from None
    if path.is_file() and path.suffix.lower() in SUFFIXES and path.suffix.lower() != ".txt":
        raise ValueError(f"{path} is a table; name the column of the author of a text by task, such as task: author")
    if expression is None and task in NAMED_WITHIN:
        raise ValueError(f"task: {task} needs a pattern that names the speaker of what follows, such as '^(.+):$'")
    root = path.parent if path.is_file() else path
    texts: dict[str, list[str]] = defaultdict(list)
    left_out = {UNREADABLE: 0, UNNAMED: 0}
    for file in files:
        try:
            content = read_text(file, encoding)
        except ValueError as error:
            if not drop:
                raise
            log.warning("left out: %s", error)
            left_out[UNREADABLE] += 1
            continue
        parsed = None if markup is None else markup(content, file)
        relative = file.relative_to(root)
        if expression is None or task not in NAMED_WITHIN:
            name = _name_of_file((relative if task == "file" else relative.parent).as_posix(), expression, file)
            texts[name].append(content if parsed is None else parsed.all())
            continue
        prefix = f"{relative.as_posix()}/" if task == "passage" and path != file else ""
        for speaker, passage in _passages(content, expression, file, parsed):
            if speaker is None:
                left_out[UNNAMED] += len(passage)
            elif passage:
                texts[prefix + speaker].append(passage)
    if not texts:
        speakers = f"the pattern {pattern!r} names no speaker of any text"
        reason = speakers if task in NAMED_WITHIN else "no file can be read"
        raise ValueError(f"{path}: {reason}, so that there are no tasks")
    return TextsOfTasks(dict(texts), None, left_out)


def _name_of_file(place: str, expression: re.Pattern[str] | None, file: Path) -> str:
    """The name of the task that a file belongs to."""
    if expression is None:
        if place == ".":
            raise ValueError(f"{file} lies in no folder that could name its task; move it into one, or set task: file")
        return place
    match = expression.search(place)
    if match is None:
        raise ValueError(
            f"{file}: the pattern {expression.pattern!r} is not found in {place!r}; narrow files or widen it"
        )
    return _group(match, file)


def _passages(
    content: str, expression: re.Pattern[str], file: Path, markup: Markup | None
) -> Iterator[tuple[str | None, str]]:
    """Speakers and passages of a file; the speaker is None before the first match."""
    matches = list(expression.finditer(content if markup is None else markup.searched()))
    speakers = [None, *(_group(match, file, markup=markup is not None) for match in matches)]
    starts, stops = [0, *(match.end() for match in matches)], [*(match.start() for match in matches), len(content)]
    for speaker, start, stop in zip(speakers, starts, stops):
        yield speaker, content[start:stop].strip("\n") if markup is None else markup.between(start, stop)


def _group(match: re.Match[str], file: Path, *, markup: bool = False) -> str:
    """The name in a match: its first group if there is one, else all of it."""
    name = match[1] if match.re.groups else match[0]
    if markup and name is not None:
        name = tidy(unescape(name))
    if name is None or not name.strip():
        raise ValueError(
            f"{file}: the pattern {match.re.pattern!r} is found in {match[0]!r}, but matches no name there"
        )
    return name.strip()
