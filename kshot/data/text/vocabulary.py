"""A vocabulary of characters, fitted on training texts, with symbols for padding and unknown characters."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

PADDING, UNKNOWN = 0, 1
"""The first two symbols of every vocabulary; the characters follow in the order of Unicode."""


class Vocabulary:
    """Characters and their ids: 0 is padding, 1 an unknown character, 2 … the known ones.

    Args:
        characters: the known characters, in any order.

    Example:
        >>> vocabulary = Vocabulary.fit(["abba", "b c"])
        >>> len(vocabulary), vocabulary.encode("cab?").tolist(), vocabulary.decode([4, 3, 5, 1, 0])
        (6, [5, 3, 4, 1], 'bac\N{REPLACEMENT CHARACTER}')
    """

    def __init__(self, characters: Iterable[str]) -> None:
        self._points = np.unique(_points("".join(characters)))

    @classmethod
    def fit(cls, texts: Iterable[str]) -> Vocabulary:
        """The vocabulary of all characters in the texts."""
        return cls(set().union(*texts))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and np.array_equal(self._points, other._points)

    def __hash__(self) -> int:
        return hash(self.characters)

    def __len__(self) -> int:
        return len(self._points) + 2

    @property
    def characters(self) -> str:
        """The known characters; `characters[i]` has the id i + 2."""
        return "".join(map(chr, self._points.tolist()))

    def to_json(self) -> dict[str, str]:
        return {"characters": self.characters}

    def encode(self, text: str) -> np.ndarray:
        """The ids (n,) int64 of a text of n characters."""
        points = _points(text)
        index = self._points.searchsorted(points)
        known = np.append(self._points, 0)[index] == points  # the appended 0 is no id: see the next line
        return np.where(known & (index < len(self._points)), index + 2, UNKNOWN)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without padding; unknown characters become the replacement character."""
        symbols = ["", "\N{REPLACEMENT CHARACTER}", *self.characters]
        return "".join(symbols[i] for i in ids)


def _points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
