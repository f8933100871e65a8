"""Vocabularies: characters fitted on training texts, or the tokens of a pretrained language model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tokenizers

PADDING, UNKNOWN = 0, 1
"""The first two symbols of every vocabulary; characters follow in the order of Unicode, tokens in their own."""
RESERVED = 2
"""Symbols before the characters or tokens: token t of a tokenizer is symbol t + 2."""

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
_BYTE_OF = dict(zip(map(chr, [*_PRINTABLE, *range(256, 512)]), [*_PRINTABLE, *_OTHERS]))
"""The byte of each sign of a byte-level vocabulary: itself if printable, else numbered from 256 on."""


class Vocabulary:
    """Characters and their ids: 0 is padding, 1 an unknown character, 2 … the known ones.

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
        return len(self._points) + RESERVED

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
        return np.where(known & (index < len(self._points)), index + RESERVED, UNKNOWN)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without padding; unknown characters become the replacement character."""
        symbols = ["", "\N{REPLACEMENT CHARACTER}", *self.characters]
        return "".join(symbols[i] for i in ids)


class Tokens:
    r"""The vocabulary of a byte-level tokenizer, as those of GPT-2, Llama 3 or Qwen, from a local folder.

    Such a tokenizer preserves bytes, so that the characters of a text are the sum of those of its tokens: those that
    begin in a token, i.e. its bytes of UTF-8 other than 10xxxxxx.

    The folder holds `tokenizer.json`, as `save_pretrained` of `transformers` writes it; nothing is downloaded.

    Raises:
        ValueError: the library `tokenizers` is not installed, the file is missing or unreadable, or the tokenizer is
            not byte-level, so that the characters of its tokens are unknown.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = str(folder)
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{folder} contains no tokenizer.json; give the folder of a model")
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ValueError("tokens need tokenizers, which is not installed: pip install 'kshot[text]'") from None
        try:
            self.tokenizer: tokenizers.Tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library has no exception class of its own
            raise ValueError(f"{path} is not a readable tokenizer: {error}") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        decoder = json.dumps(json.loads(self.tokenizer.to_str())["decoder"])
        if '"ByteLevel"' not in decoder or self.num_characters("a b") != 3:
            raise ValueError(
                f"{path} is not byte-level: the characters of its tokens are unknown, so that bits per character "
                "cannot be computed; use unit: bytes, or a model such as GPT-2, Llama 3 or Qwen"
            )

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size() + RESERVED

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokens) and self.tokenizer.to_str() == other.tokenizer.to_str()

    def __hash__(self) -> int:
        return hash(self.folder)

    def encode(self, text: str) -> np.ndarray:
        """The symbols (n,) int64 of a text, without special tokens."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int64) + RESERVED

    def decode(self, ids: Iterable[int]) -> str:
        """The text of symbols, without padding."""
        tokens = [symbol - RESERVED for symbol in ids if symbol != PADDING]
        return self.tokenizer.decode(tokens, skip_special_tokens=False)

    @cached_property
    def characters(self) -> tuple[int, ...]:
        """The number of characters of each symbol; 0 for the reserved ones."""
        added = self.tokenizer.get_added_tokens_decoder()
        lengths = [0] * len(self)
        for piece, token in self.tokenizer.get_vocab(with_added_tokens=True).items():
            starts = piece if token in added else [sign for sign in piece if not 0x80 <= _BYTE_OF[sign] < 0xC0]
            lengths[token + RESERVED] = len(starts)
        return tuple(lengths)

    def num_characters(self, text: str) -> int:
        """The number of characters of the tokens of a text."""
        return sum(self.characters[symbol] for symbol in self.encode(text).tolist())

    def to_json(self) -> dict[str, Any]:
        return {"tokenizer": self.folder}


def _points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
