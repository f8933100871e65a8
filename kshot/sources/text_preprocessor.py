"""How texts become inputs of a model: n-grams, numbers of characters, or what a pretrained encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kshot.data.dataset import ArrayDataset, Dataset
from kshot.data.tables.frames import TableLike
from kshot.data.tables.table import Reading, Table
from kshot.data.text.features import character_ids, hashed_ngrams
from kshot.data.text.files import texts_of, words_of
from kshot.data.text.labelled import open_labelled
from kshot.data.text.sentence_encoder import SentenceEncoder
from kshot.data.text.vocabulary import Vocabulary
from kshot.tasks.preprocessor import Preprocessor, Support
from kshot.types import Tree

NGRAMS: dict[str, tuple[int, int]] = {"words": (1, 2), "characters": (2, 4)}
"""Default sizes of n-grams."""
MOST_NGRAM = 20
WIDTH = 1024
"""Default number of features, or of ids."""

Features = Literal["words", "characters", "ids", "encoder", "tokens"]


@dataclass(frozen=True)
class TextPreprocessor(Preprocessor):
    """Converts texts into inputs.

    Attributes:
        features, width, ngrams, encoder, text, label, reading: as in `text`.
        sha256: hash of the files of the encoder.
        characters: the vocabulary of ids.
    """

    features: Features
    width: int
    ngrams: tuple[int, int] | None = None
    encoder: str | None = None
    sha256: str | None = None
    characters: str = ""
    text: str = "text"
    label: str = "label"
    reading: Reading = field(default_factory=Reading)

    def examples(self, texts: Sequence[str], *, keep: bool = False) -> Dataset:
        """Texts as a dataset; `keep` caches features that take long to compute."""
        if self.features == "ids":
            return character_ids(texts, vocabulary=Vocabulary(self.characters), width=self.width)
        if self.features == "encoder":
            encoder = self.opened()
            return encoder(texts) if keep else ArrayDataset(encoder.encode(texts))
        if self.features == "tokens":
            return self.opened().tokens(texts)
        assert self.ngrams is not None
        return hashed_ngrams(texts, of=self.features, ngrams=self.ngrams, width=self.width, keep=keep)

    def opened(self) -> SentenceEncoder:
        """The encoder; raises ValueError if its files have changed."""
        assert self.encoder is not None
        encoder = SentenceEncoder(self.encoder, length=self.width)
        if encoder.sha256 != self.sha256:
            raise ValueError(
                f"the encoder {self.encoder} has changed since: its files hash to {encoder.sha256[:16]}…, not "
                f"{str(self.sha256)[:16]}…; features of different encoders are not comparable"
            )
        return encoder

    def support(self, path: Path | TableLike) -> Support:
        """Texts with their classes, in any format that `text` reads."""
        table = open_labelled(path, self.reading, self.text, self.label)
        labels = words_of(table, self.label, "a support text needs its class")
        return Support(self._inputs(table), labels.to_list(), {})

    def inputs(self, path: Path | TableLike, kept: dict[str, Any]) -> Tree:
        """Texts to predict for; they need no labels."""
        return self._inputs(open_labelled(path, self.reading, self.text, self.label))

    def answers(self, prediction: Tree, kept: dict[str, Any]) -> dict[str, list[Any]]:
        """Empty: predictions are classes of the support set."""
        return {}

    def describe(self) -> dict[str, Any]:
        if self.encoder is not None:
            return {"features": self.features, "encoder": self.encoder, "width": self.width}
        sizes = {"symbols": len(self.characters) + 2} if self.features == "ids" else {"ngrams": list(self.ngrams or ())}
        return {"features": self.features, "width": self.width, **sizes}

    def to_json(self) -> dict[str, Any]:
        return {"kind": "text", **asdict(self), "reading": self.reading._asdict()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TextPreprocessor:
        fields = {name: value for name, value in data.items() if name != "kind"}
        ngrams = tuple(data["ngrams"]) if data["ngrams"] else None
        return cls(**fields | {"ngrams": ngrams, "reading": Reading(**data["reading"])})

    def _inputs(self, table: Table) -> Tree:
        texts = texts_of(table, self.text)
        table.settle("error")
        return self.examples(texts.to_list()).take(np.arange(len(texts)))


def text_preprocessor(
    features: Features, encoder: str | None, ngrams: Sequence[int] | None, width: int | None
) -> TextPreprocessor:
    """The preprocessor for the arguments of `text`, with defaults filled in."""
    if features in ("encoder", "tokens"):
        if encoder is None or ngrams is not None:
            needed = "an encoder, a folder or package:NAME, and no ngrams"
            raise ValueError(f"features: {features} needs {needed}; got {encoder!r}")
        opened = SentenceEncoder(encoder, length=width)
        return TextPreprocessor(features, opened.length, encoder=encoder, sha256=opened.sha256)
    if encoder is not None:
        raise ValueError(f"encoder goes with features: encoder or tokens, got features: {features}")
    if ngrams is None:
        return TextPreprocessor(features, width or WIDTH, NGRAMS.get(features))
    if features == "ids" or len(ngrams) != 2 or not 1 <= ngrams[0] <= ngrams[1] <= MOST_NGRAM:
        raise ValueError(
            f"ngrams are the smallest and the largest n, such as [1, 2], of words or characters, up to {MOST_NGRAM}; "
            f"got {list(ngrams)} with features: {features}"
        )
    return TextPreprocessor(features, width or WIDTH, (ngrams[0], ngrams[1]))
