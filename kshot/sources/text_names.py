"""Texts whose classes have names that are read too: descriptions of classes, and support sets of a user with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.data.tables.frames import TableLike
from kshot.data.text.files import column_of, words_of
from kshot.data.text.labelled import open_labelled, phrase
from kshot.sources.class_names import LABELS, Descriptions, NamesClasses, descriptions_of
from kshot.sources.text_preprocessor import TextPreprocessor
from kshot.tasks.names import marked
from kshot.tasks.preprocessor import Support
from kshot.types import Tree


def named_text_preprocessor(
    preprocessor: TextPreprocessor, names: str, classes: Iterable[str]
) -> NamedTextPreprocessor:
    """The preprocessor for texts and the names of their classes.

    Args:
        names: "labels", or the JSON file of `read_descriptions`.
        classes: all classes.

    Raises:
        ValueError: errors of `read_descriptions`, or texts as numbers of characters or tokens.
    """
    if preprocessor.features not in ("words", "characters", "encoder"):
        raise ValueError(
            "names are read as the texts are: they go with features: encoder, words or characters, got features: "
            f"{preprocessor.features}"
        )
    return NamedTextPreprocessor(**vars(preprocessor), descriptions=descriptions_of(names, classes))


@dataclass(frozen=True)
class NamedTextPreprocessor(TextPreprocessor, NamesClasses):
    """Texts and the names of their classes as features, with the mark of names as a last column."""

    descriptions: Descriptions = field(default_factory=dict)

    def sentence(self, label: str) -> str:
        return phrase(label)

    def features_of(self, texts: Sequence[str]) -> Tensor:
        features = self.examples(texts).take(np.arange(len(texts)))
        assert isinstance(features, Tensor)
        return features

    def support(self, path: Path | TableLike) -> Support:
        """Texts with their classes, and a row for the name of each class; a row without a text is a class alone."""
        import polars as pl

        table = open_labelled(path, self.reading, self.text, self.label)
        labels = words_of(table, self.label, "a support row needs its class")
        if self.text in table.frame.columns:
            texts = column_of(table, self.text)
        else:
            texts = pl.Series(self.text, [None] * len(labels), pl.String)
        table.settle("error")
        has_text = ((texts.str.strip_chars() != "").fill_null(False)).to_numpy()
        classes = labels.unique(maintain_order=True).to_list()
        rows = [marked(self.names_of(classes), True)]
        if has_text.any():
            rows.insert(0, marked(self.features_of(texts.filter(has_text).to_list()), False))
        return Support(torch.cat(rows), [*labels.filter(has_text).to_list(), *classes], {})

    def inputs(self, path: Path | TableLike, kept: dict[str, Any]) -> Tree:
        """Texts to predict for; they need no labels."""
        inputs = super().inputs(path, kept)
        assert isinstance(inputs, Tensor)
        return marked(inputs, False)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"names": "descriptions" if self.descriptions else LABELS}

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"kind": "named_text", "descriptions": dict(self.descriptions)}
