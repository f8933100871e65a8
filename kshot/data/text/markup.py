"""Marked-up text, XML or HTML, as the words in it: tags and comments dropped, character references decoded."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection
from html import unescape
from html.parser import HTMLParser
from itertools import accumulate
from operator import itemgetter
from typing import Any

_BREAKING = """address article aside blockquote br caption dd div dl dt fieldset figcaption figure footer form h1 h2 h3
h4 h5 h6 header hr li main nav ol option p pre section table td th tr ul"""
BREAKING = frozenset(_BREAKING.split())
"""Elements of HTML that begin and end a line."""
WORDLESS = frozenset({"script", "style"})

_WORDS, _AS_IT_IS, _BREAK, _NOTHING = range(4)


class Markup(HTMLParser):
    """A marked-up text, of which any stretch can be had as plain text.

    What is not well-formed is read as a browser would. White space means little in markup: a run of it becomes one line
    feed if it holds one, and a space if not. Scripts and styles are no words.

    Args:
        content: the text as it is written, line ends as line feeds.
        without: elements whose text is left out with all that is in them, in either case.

    Raises:
        ValueError: an element of `without` that is opened and never closed, or a section that is no markup; with its
            line.

    Attributes:
        elements: the names of all elements, in lower case.

    Example:
        >>> text = "<p>Fish &amp; <b>chips</b>, <i>aside</i> she said.</p><!-- no --><p>Why?</p>"
        >>> Markup(text, without=["i"]).all()
        'Fish & chips, she said.\\nWhy?'
    """

    # The parser takes what is in a title for mere text, as HTML has it, but in XML a title may hold elements. The stubs
    # call the attribute final; a subclass that parses more than HTML needs another.
    RCDATA_CONTENT_ELEMENTS = ()  # type: ignore[misc]

    def __init__(self, content: str, without: Collection[str] = ()) -> None:
        super().__init__(convert_charrefs=True)
        self.content, self.elements = content, set[str]()
        self._without = WORDLESS | {name.lower() for name in without}
        self._left_out: tuple[str, int, int] | None = None  # the element that is open: its name, depth and line
        self._line_starts = [0, *accumulate(len(line) + 1 for line in content.split("\n"))]
        self._stretches: list[tuple[int, int]] = []  # where each begins, and what it is
        self._comments: list[tuple[int, int]] = []
        try:
            self.feed(content)
            self.close()
        except AssertionError as error:
            raise ValueError(f"line {self.getpos()[0]}: this is no markup: {error}") from None
        if self._left_out is not None and self._left_out[0] not in WORDLESS:
            name, _, line = self._left_out
            raise ValueError(
                f"line {line}: <{name}> is opened and never closed, so that all behind it would be left out"
            )
        self._stretches.append((len(content), _NOTHING))

    def between(self, start: int, stop: int) -> str:
        """The plain text of `content[start:stop]`."""
        parts = []
        first = max(bisect_right(self._stretches, start, key=itemgetter(0)) - 1, 0)
        for place in range(first, len(self._stretches) - 1):
            (begin, kind), (end, _) = self._stretches[place : place + 2]
            if begin >= stop:
                break
            if kind == _BREAK and begin >= start:
                parts.append("\n")
            elif kind in (_WORDS, _AS_IT_IS):
                words = self.content[max(begin, start) : min(end, stop)]
                parts.append(unescape(words) if kind == _WORDS else words)
        return tidy("".join(parts))

    def all(self) -> str:
        """The plain text of the whole."""
        return self.between(0, len(self.content))

    def searched(self) -> str:
        """The content with its comments blanked out, for what must not be found in them."""
        parts, at = [], 0
        for start, stop in self._comments:
            parts += [self.content[at:start], " " * (stop - start)]
            at = stop
        return "".join([*parts, self.content[at:]])

    def _at(self) -> int:
        line, column = self.getpos()
        return self._line_starts[line - 1] + column

    def _note(self, kind: int, at: int | None = None) -> None:
        kind = _NOTHING if self._left_out else kind
        self._stretches.append((self._at() if at is None else at, kind))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.add(tag)
        self._note(_BREAK if tag in BREAKING else _NOTHING)
        if self._left_out is None and tag in self._without:
            self._left_out = tag, 1, self.getpos()[0]
        elif self._left_out is not None and tag == self._left_out[0]:
            name, depth, line = self._left_out
            self._left_out = name, depth + 1, line

    def handle_endtag(self, tag: str) -> None:
        if self._left_out is not None and tag == self._left_out[0]:
            name, depth, line = self._left_out
            self._left_out = (name, depth - 1, line) if depth > 1 else None
        self._note(_BREAK if tag in BREAKING else _NOTHING)

    def handle_data(self, data: str) -> None:
        self._note(_WORDS)

    def handle_comment(self, data: str) -> None:
        self._note(_NOTHING)
        self._comments.append((self._at(), self._at() + len(data)))

    def handle_pi(self, data: str) -> None:
        self._note(_NOTHING)

    def handle_decl(self, decl: str) -> None:
        self._note(_NOTHING)

    def unknown_decl(self, data: str) -> None:
        self._note(_NOTHING)
        if data[:6].upper() == "CDATA[":
            start = self._at() + len("<![CDATA[")
            self._note(_AS_IT_IS, start)
            self._note(_NOTHING, start + len(data) - len("CDATA["))


def tidy(text: str) -> str:
    """A text whose runs of white space are a line feed each, or a space where they hold none; none at either end."""
    return re.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", text).strip()
