"""The terminal, on which names and texts of users act on nothing."""

from __future__ import annotations

import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

_DIRECTIONS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    r"""A text whose control characters, but for new lines and tabulators, are shown as their codes.

    Example:
        >>> print(visible("a\x1b[2Jb\u202e"))
        a\x1b[2Jb\u202e
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if character in _DIRECTIONS or (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t")
        else character
        for character in text
    )


class Screen(Console):
    """A console that shows control characters of texts, such as those of escape sequences, instead of obeying them."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text with its markup as `Console.render_str`, without control characters."""
        return super().render_str(visible(text), **options)
