"""Tokens of a pretrained language model as symbols, and how many characters each stands for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kshot.data.text.vocabulary import PADDING, UNKNOWN

if TYPE_CHECKING:
    import tokenizers

RESERVED = UNKNOWN + 1
"""Symbols before a tokenizer's own: its token t is the symbol t + 2."""


class Tokens:
    r"""The vocabulary of a tokenizer that cuts bytes, as those of GPT-2, Llama 3 or Qwen do, in a local folder.

    Bytes are kept whole by such a tokenizer, so that the characters of a text are the sum of what its tokens stand for:
    a token counts the characters that begin in it, of UTF-8 the bytes other than 10xxxxxx.

    Args:
        folder: with `tokenizer.json`, as `save_pretrained` of `transformers` leaves it; nothing is downloaded.

    Raises:
        ValueError: the library `tokenizers` isn't installed; no such file, or none that can be read; a tokenizer that
            changes texts, so that its tokens don't tell how many characters they stand for.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = str(folder)
        place = Path(folder) / "tokenizer.json"
        if not place.is_file():
            raise ValueError(f"{folder} holds no tokenizer: it has no tokenizer.json; give the folder of a model")
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ValueError("tokens need tokenizers, which is not installed: pip install 'kshot[text]'") from None
        try:
            self.tokenizer: tokenizers.Tokenizer = Tokenizer.from_file(str(place))
        except Exception as error:  # the library raises no class of its own
            raise ValueError(f"{place} is no tokenizer that can be read: {error}") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        if '"ByteLevel"' not in json.dumps(json.loads(self.tokenizer.to_str())["decoder"]) or self.counted("a b") != 3:
            raise ValueError(
                f"{place} is not byte-level: its tokens do not tell how many characters they stand for, so that there "
                "are no bits per character; take unit: bytes, or a model such as GPT-2, Llama 3 or Qwen"
            )

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size() + RESERVED

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokens) and self.tokenizer.to_str() == other.tokenizer.to_str()

    def __hash__(self) -> int:
        return hash(self.folder)

    def encode(self, text: str) -> np.ndarray:
        """The symbols (n,) int64 of a text; no special token is added."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int64) + RESERVED

    def decode(self, ids: Iterable[int]) -> str:
        """The text of symbols; padding is left out."""
        own = [i - RESERVED for i in ids if i != PADDING]
        return self.tokenizer.decode(own, skip_special_tokens=False)

    @cached_property
    def characters(self) -> tuple[int, ...]:
        """How many characters each symbol stands for; the first two stand for none."""
        added = self.tokenizer.get_added_tokens_decoder()
        found = [0] * len(self)
        for piece, number in self.tokenizer.get_vocab(with_added_tokens=True).items():
            begun = piece if number in added else [sign for sign in piece if not 0x80 <= BYTE_OF[sign] < 0xC0]
            found[number + RESERVED] = len(begun)
        return tuple(found)

    def counted(self, text: str) -> int:
        """The characters that the tokens of a text stand for."""
        return sum(self.characters[symbol] for symbol in self.encode(text).tolist())

    def to_json(self) -> dict[str, Any]:
        return {"tokenizer": self.folder}


def _signs() -> dict[str, int]:
    """The byte that each sign of a byte-level vocabulary stands for: itself where it prints, else from 256 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTE_OF = _signs()
