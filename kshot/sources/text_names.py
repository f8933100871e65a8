"""Texts whose classes have names that are read too: descriptions of classes, and support sets of a user with them."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.data.library import resolve_path
from kshot.data.tables.frames import TableLike
from kshot.data.text.files import column_of, words_of
from kshot.data.text.labelled import open_labelled, phrase
from kshot.data.text_files import read_json
from kshot.sources.text_preprocessor import TextPreprocessor
from kshot.tasks.names import NamedTasks, marked, with_names
from kshot.tasks.preprocessor import Support
from kshot.tasks.source import TaskSource
from kshot.types import Tree

LABELS = "labels"
"""The option `names` for classes that go by their labels."""


def named(source: TaskSource, preprocessor: TextPreprocessor, names: str, classes: Iterable[str]) -> NamedTasks:
    """The tasks of a source of texts with the names of their classes as support rows.

    Args:
        preprocessor: of the texts, as features.
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
    classes = list(classes)
    descriptions = {} if names == LABELS else read_descriptions(resolve_path(names), classes)
    own = NamedTextPreprocessor(**vars(preprocessor), descriptions=descriptions)
    tasks = with_names(source, dict(zip(classes, own.names_of(classes))))
    tasks.preprocessor = own
    return tasks


def read_descriptions(path: Path, classes: Iterable[str]) -> dict[str, list[str]]:
    """Read a JSON file of descriptions, `{"greet": "the user says hello", "pay": ["…", "…"]}`: class -> texts.

    Classes that the file lacks go by their labels.

    Raises:
        ValueError: another structure, an empty description, or a class that is not in the data.
    """
    content, known = read_json(path), set(classes)
    if not isinstance(content, dict):
        raise ValueError(f'{path} must hold the descriptions of classes, as in {{"greet": "the user says hello"}}')
    found: dict[str, list[str]] = {}
    for name, given in content.items():
        texts = [given] if isinstance(given, str) else given
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(each, str) and each.strip() for each in texts)
        ):
            raise ValueError(
                f"{path}: class {name!r} needs a description, or a list of them, got {reprlib.repr(given)}"
            )
        if name not in known:
            raise ValueError(f"{path}: the data has no class {name!r}; classes are called as in the data")
        found[name] = texts
    return found


@dataclass(frozen=True)
class NamedTextPreprocessor(TextPreprocessor):
    """Texts and the names of their classes as features, with the mark of names as a last column.

    Attributes:
        descriptions: class -> texts; other classes, such as new ones of a user, go by their labels.
    """

    descriptions: Mapping[str, list[str]] = field(default_factory=dict)

    def names_of(self, classes: Iterable[str]) -> Tensor:
        """The features (classes, D) of names: the mean over the descriptions of a class, or its label as words."""
        texts = [self.descriptions.get(name) or [phrase(name)] for name in classes]
        features = self._features([text for of_one in texts for text in of_one])
        return torch.stack([part.mean(0) for part in features.split([len(of_one) for of_one in texts])])

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
            rows.insert(0, marked(self._features(texts.filter(has_text).to_list()), False))
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

    def _features(self, texts: Sequence[str]) -> Tensor:
        features = self.examples(texts).take(np.arange(len(texts)))
        assert isinstance(features, Tensor)
        return features
