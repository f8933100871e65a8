"""XML or HTML as plain text: tags and comments dropped, character references decoded."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection
from html import unescape
from html.parser import HTMLParser
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Any

_BREAKING = """address article aside blockquote br caption dd div dl dt fieldset figcaption figure footer form h1 h2 h3
h4 h5 h6 header hr li main nav ol option p pre section table td th tr ul"""
BREAKING = frozenset(_BREAKING.split())
"""HTML elements that begin and end a line."""
WORDLESS = frozenset({"script", "style"})

_WORDS, _VERBATIM, _BREAK, _NOTHING = range(4)


class Markup(HTMLParser):
    """A marked-up text, any part of which can be converted to plain text.

    Malformed markup is read as a browser would. A run of white space becomes one line feed if it contains one, else a
    space. Scripts and styles are dropped.

    Args:
        content: the source, line ends as line feeds.
        without: elements that are dropped with their content, in either case.

    Raises:
        ValueError: an element of `without` is never closed, or a section is not markup; with its line.

    Attributes:
        elements: names of all elements, in lower case.

    Example:
        >>> text = "<p>Fish &amp; <b>chips</b>, <i>aside</i> she said.</p><!-- no --><p>Why?</p>"
        >>> Markup(text, without=["i"]).all()
        'Fish & chips, she said.\\nWhy?'
    """

    # HTML allows no elements in a title, XML does. Final by the stubs, but meant to be overridden for other languages.
    RCDATA_CONTENT_ELEMENTS = ()  # type: ignore[misc]

    def __init__(self, content: str, without: Collection[str] = ()) -> None:
        super().__init__(convert_charrefs=True)
        self.content, self.elements = content, set[str]()
        self._without = WORDLESS | {name.lower() for name in without}
        self._dropped: tuple[str, int, int] | None = None  # open element to drop: name, depth and line
        self._line_starts = [0, *accumulate(len(line) + 1 for line in content.split("\n"))]
        self._pieces: list[tuple[int, int]] = []  # start and kind of each; up to the start of the next
        self._comments: list[tuple[int, int]] = []
        try:
            self.feed(content)
            self.close()
        except AssertionError as error:
            raise ValueError(f"line {self.getpos()[0]}: this is not markup: {error}") from None
        if self._dropped is not None and self._dropped[0] not in WORDLESS:
            name, _, line = self._dropped
            raise ValueError(f"line {line}: <{name}> is never closed, so that everything after it would be dropped")
        self._pieces.append((len(content), _NOTHING))

    def between(self, start: int, stop: int) -> str:
        """The plain text of `content[start:stop]`."""
        parts = []
        first = max(bisect_right(self._pieces, start, key=itemgetter(0)) - 1, 0)
        last = bisect_right(self._pieces, stop - 1, key=itemgetter(0))
        for (begin, kind), (end, _) in pairwise(self._pieces[first : last + 1]):
            if kind == _BREAK and begin >= start:
                parts.append("\n")
            elif kind in (_WORDS, _VERBATIM):
                words = self.content[max(begin, start) : min(end, stop)]
                parts.append(unescape(words) if kind == _WORDS else words)
        return tidy("".join(parts))

    def all(self) -> str:
        """The plain text of everything."""
        return self.between(0, len(self.content))

    def searched(self) -> str:
        """The content with comments replaced by spaces, for searches that must not match in them."""
        parts, position = [], 0
        for start, stop in self._comments:
            parts += [self.content[position:start], " " * (stop - start)]
            position = stop
        return "".join([*parts, self.content[position:]])

    def _position(self) -> int:
        line, column = self.getpos()
        return self._line_starts[line - 1] + column

    def _begin(self, kind: int, position: int | None = None) -> None:
        position = self._position() if position is None else position
        self._pieces.append((position, _NOTHING if self._dropped else kind))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.add(tag)
        self._begin(_BREAK if tag in BREAKING else _NOTHING)
        if self._dropped is None and tag in self._without:
            self._dropped = tag, 1, self.getpos()[0]
        elif self._dropped is not None and tag == self._dropped[0]:
            name, depth, line = self._dropped
            self._dropped = name, depth + 1, line

    def handle_endtag(self, tag: str) -> None:
        if self._dropped is not None and tag == self._dropped[0]:
            name, depth, line = self._dropped
            self._dropped = (name, depth - 1, line) if depth > 1 else None
        self._begin(_BREAK if tag in BREAKING else _NOTHING)

    def handle_data(self, data: str) -> None:
        self._begin(_WORDS)

    def handle_comment(self, data: str) -> None:
        self._begin(_NOTHING)
        self._comments.append((self._position(), self._position() + len(data)))

    def handle_pi(self, data: str) -> None:
        self._begin(_NOTHING)

    def handle_decl(self, decl: str) -> None:
        self._begin(_NOTHING)

    def unknown_decl(self, data: str) -> None:
        self._begin(_NOTHING)
        if data[:6].upper() == "CDATA[":
            start = self._position() + len("<![CDATA[")
            self._begin(_VERBATIM, start)
            self._begin(_NOTHING, start + len(data) - len("CDATA["))


def tidy(text: str) -> str:
    """Replace each run of white space by a line feed if it contains one, else by a space; strip both ends."""
    return re.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", text).strip()
