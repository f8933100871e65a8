"""The parts of a page, as finished strings: sections with tables, pictures and pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Pairs = list[tuple[str, str]]
"""Labels and values."""


class Column(NamedTuple):
    """A column of a table; `kind` is a CSS class: "n" for numbers, "figure" for one line, "name" for a few
    words, "text", "reason"."""

    title: str
    kind: str = "figure"


class Badge(NamedTuple):
    """A short text in a colour; `tone` is a CSS class."""

    text: str
    tone: str


class Row(NamedTuple):
    """A row of a table; `emphasis` is "main", "muted" or empty."""

    cells: Sequence[str | Badge]
    emphasis: str = ""


class Table(NamedTuple):
    """A table of finished strings; `layout` is a CSS class."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    layout: str = ""


class Picture(NamedTuple):
    """A figure as a data URI, with its text alternative and caption, and for narrow screens if it has such a form."""

    name: str
    uri: str
    alt: str
    caption: str
    narrow: str = ""


class Section(NamedTuple):
    """A part of a page under a title; empty parts are left out."""

    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    table: Table | None = None
    pairs: Sequence[tuple[str, str]] = ()
    note: str = ""
    code: str = ""
